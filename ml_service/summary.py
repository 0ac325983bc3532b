"""The page that a pipeline's run shows about its training: verdict, metrics and plots, as Markdown.

Names, reasons and numbers come from a project's own steps, so every one is escaped: none can be markup or a command.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from ml_service.azure_devops import sanitize_log_line
from ml_service.ports import ModelVersion, Run

_MARKUP = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]()#+!|<>~-"})
_WIDTH = 48
"""Characters of the interval's line: a summary's column is narrow."""


def training_summary(run: Run, version: ModelVersion | None, plots: Mapping[str, str], otherwise: str) -> str:
    """Return the Markdown; ``otherwise`` is what to say when nothing was registered, ``plots`` maps names to SVG."""
    title = f"Model {version.reference} was registered for this run." if version else otherwise
    lines = [f"# {_plain(title)}", "", f"Run {_plain(run.id)}, status {run.status.value}."]
    if run.verdict:
        lines += ["", *_verdict(run.verdict)]
    if version:
        lines += ["", "## Metrics", "", *_table(["metric", "value"], version.metrics.items())]
    for name, svg in sorted(plots.items()):
        encoded = base64.b64encode(svg.encode()).decode("ascii")
        lines += ["", f"## {_plain(name.removesuffix('.svg'))}", "", f"![plot](data:image/svg+xml;base64,{encoded})"]
    return "\n".join([*lines, ""])


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Verdict: {'accepted' if verdict.get('accept') else 'rejected'}"
    yield ""
    yield _plain(str(verdict.get("reason", "")))
    yield ""
    wanted = ("metric", "direction", "candidate", "champion", "improvement", "rows", "rows_left_out")
    yield from _table(["gate", "value"], ((name, verdict[name]) for name in wanted if verdict.get(name) is not None))
    if interval := _interval(verdict.get("bootstrap")):
        legend = "95 % of the resampled improvements lie between the bars; right of 0 the candidate is better:"
        yield from ("", legend, "")
        yield from ("```text", *interval, "```")


def _interval(bootstrap: object) -> list[str]:
    """Return the bootstrap's interval as a line of text, which every viewer of Markdown shows."""
    if not isinstance(bootstrap, Mapping):
        return []
    try:
        low, high = float(bootstrap["low"]), float(bootstrap["high"])
    except (KeyError, TypeError, ValueError):
        return []
    left, right = min(low, 0.0), max(high, 0.0)
    if not 0 < right - left < float("inf"):
        return []

    def column(value: float) -> int:
        return round((value - left) / (right - left) * (_WIDTH - 1))

    line = ["·"] * _WIDTH
    for at in range(column(low), column(high) + 1):
        line[at] = "━"
    line[column(0.0)] = "0"
    line[column(low)], line[column(high)] = "┣", "┫"
    return ["".join(line), f"{low:.6g} to {high:.6g}"]


def _table(head: list[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for name, value in rows:
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        yield f"| {_plain(str(name))} | {_plain(shown)} |"


def _plain(text: str) -> str:
    """Text from outside as one line of text: no markup, no command."""
    return sanitize_log_line(text.replace("\n", " ")).translate(_MARKUP)
