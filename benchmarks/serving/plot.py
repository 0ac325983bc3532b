"""Draws latency by percentile: JSON on standard input, ``python plot.py FILE``; it needs matplotlib."""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "scoring"

from matplotlib import pyplot  # noqa: E402

figures = json.load(sys.stdin)
figure, axes = pyplot.subplots(1, len(figures), figsize=(10, 4), sharey=True, layout="constrained")
for axis, (rate, contenders) in zip(axes, figures.items(), strict=True):
    for name, points in contenders.items():
        axis.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
    axis.set_yscale("log")
    axis.set_title(f"{rate} requests a second")
    axis.set_xlabel("percentile")
    axis.grid(True, which="both", alpha=0.3)
    axis.legend(fontsize=8)
axes[0].set_ylabel("milliseconds from due to answered")
figure.suptitle("A forest of 300 trees on 30 columns, one row a request")
figure.savefig(sys.argv[1], metadata={"Date": None})
