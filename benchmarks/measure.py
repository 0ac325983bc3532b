"""Interleaved rounds and their ratios. Only ratios of one run mean something: the machine is shared and noisy."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Contender:
    """Something to time: ``prepare`` is not timed and returns the command and the directory to run it in."""

    name: str
    prepare: Callable[[], tuple[Sequence[str], Path, Mapping[str, str]]]


def rounds(contenders: Sequence[Contender], count: int) -> dict[str, list[float]]:
    """Return seconds of ``count`` rounds a contender, one after the other in each round; the first is not counted."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(count + 1):
        for contender in contenders:
            took = _time(contender)
            print(f"round {number}/{count}  {contender.name:<24} {took:7.3f} s", file=sys.stderr)
            if number:
                seconds[contender.name].append(took)
    return seconds


def _time(contender: Contender) -> float:
    command, directory, env = contender.prepare()
    # Compiled sources are kept, as everywhere: a shell that says otherwise would time the compiler, of some contenders.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=directory, env={**inherited, **env}, capture_output=True, text=True)
    took = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{contender.name} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return took


def summary(seconds: Mapping[str, Sequence[float]], base: str) -> list[dict[str, Any]]:
    """Return a row each: median seconds, and the median over the rounds of the ratio to ``base`` in the same round."""
    rows = []
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, seconds[base], strict=True)]
        rows.append({"name": name, "seconds": statistics.median(values), "ratio": statistics.median(ratios)})
    return rows


def write_results(name: str, result: Mapping[str, Any]) -> None:
    """Keep a run's figures in ``results/NAME.json``, with the machine they are from."""
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **result}, indent=2) + "\n")


def hold(rows: Sequence[Mapping[str, Any]], name: str, at_most: float) -> None:
    """End with exit code 1 when the ratio of ``name`` is above its promise."""
    ratio = next(row["ratio"] for row in rows if row["name"] == name)
    verdict = "holds" if ratio <= at_most else "BROKEN"
    print(f"{name}: {ratio:.2f} times, promised at most {at_most}: {verdict}")
    if ratio > at_most:
        sys.exit(1)
