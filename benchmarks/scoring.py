"""``python -m benchmarks.scoring``: the scoring service against its peers, side by side in one run.

It installs the peers, makes the models, loads every server in turn in short rounds, and holds the ratios that are
promised. Results: ``benchmarks/results/scoring.json``, ``docs/images/scoring-latency.svg``, and the table in
``docs/scoring.md`` and on standard output. It needs wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environments import peer_python
from benchmarks.measure import write_results
from benchmarks.serving.client import latencies
from benchmarks.serving.servers import (
    HERE,
    KEY,
    ROOT,
    Contender,
    Running,
    azureml_same,
    azureml_usual,
    constant,
    mlflow,
    ours,
)

CONNECTIONS = 8
LOW_RATE, HIGH_RATE = 25.0, 300.0
GUIDE = ROOT / "docs" / "scoring.md"
BEGIN, END = "<!-- table scoring -->", "<!-- end -->"
PLOT = ROOT / "docs" / "images" / "scoring-latency.svg"

PROMISES = {
    "one row, over azureml with our score.py": (12.0, 20.0),
    "one row, over the constant answer": (0.5, 0.75),
    "1,000 rows, over azureml with our score.py": (1.5, None),
    "1,000 rows, two workers over one": (1.6, None),
}
"""Ratios of requests a second: what is promised, and what is aimed at."""

Figures = dict[str, dict[str, Any]]
Maker = Callable[[Path], Contender]


def main() -> None:
    """Measure everything, write it down, and end with 1 when a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description="the service against its peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="a round's length")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing\nnext: apt-get install wrk")
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch)
        say("making the models")
        subprocess.run([peer_python("serving"), HERE / "models.py", models], check=True, capture_output=True)
        result = measure(models, args.rounds, args.seconds)
    write_results("scoring", result)
    plot(result["forest"])
    text = table(result)
    write_table(text)
    print(text)
    sys.exit(hold(result["ratios"]))


def measure(models: Path, rounds: int, seconds: int) -> dict[str, Any]:
    """Return all figures."""
    ridge, forest = models / "ridge", models / "forest"
    one = throughput([ours, constant, azureml_same, azureml_usual, mlflow], ridge, 1, rounds, seconds)
    many = throughput([ours, two_workers, azureml_same, azureml_usual, mlflow], ridge, 1000, rounds, seconds)
    peers: list[Maker] = [ours, azureml_same, azureml_usual, mlflow]
    return {
        "one_row": one,
        "thousand_rows": many,
        "ratios": {
            "one row, over azureml with our score.py": ratio(one, "ours", "azureml, our score.py"),
            "one row, over azureml with the usual script": ratio(one, "ours", "azureml, usual script"),
            "one row, over mlflow models serve": ratio(one, "ours", "mlflow models serve"),
            "one row, over the constant answer": ratio(one, "ours", "constant answer"),
            "1,000 rows, over azureml with our score.py": ratio(many, "ours", "azureml, our score.py"),
            "1,000 rows, over azureml with the usual script": ratio(many, "ours", "azureml, usual script"),
            "1,000 rows, over mlflow models serve": ratio(many, "ours", "mlflow models serve"),
            "1,000 rows, two workers over one": ratio(many, "ours, 2 workers", "ours"),
        },
        "forest": fixed_rate(peers, forest, rounds, seconds),
        "start": starts(peers, ridge, rounds),
    }


def two_workers(model: Path) -> Contender:
    """The service with two workers."""
    return ours(model, workers=2)


def throughput(makers: Sequence[Maker], model: Path, rows: int, rounds: int, seconds: int) -> Figures:
    """Requests a second and latency of each, all servers up, one loaded at a time; a first round is not counted."""
    asked = json.loads((model / "rows.json").read_text())[:rows]
    figures: Figures = {}
    with running(makers, model, asked) as servers:
        for number in range(rounds + 1):
            for server in servers:
                measured = wrk(server, asked, seconds)
                say(f"{rows} rows, round {number}/{rounds}  {server.contender.name:<24} {measured['rate']:9.1f}/s")
                if number:
                    entry = figures.setdefault(server.contender.name, {"rates": [], "p50_ms": [], "p99_ms": []})
                    entry["rates"].append(measured["rate"])
                    entry["p50_ms"].append(measured["p50_ms"])
                    entry["p99_ms"].append(measured["p99_ms"])
    return {name: {key: median(key, values) for key, values in entry.items()} for name, entry in figures.items()}


def median(key: str, values: list[float]) -> Any:
    """Rates are kept round by round, for ratios; of the others, the median."""
    return values if key == "rates" else statistics.median(values)


@contextlib.contextmanager
def running(makers: Sequence[Maker], model: Path, rows: Sequence[Any]) -> Iterator[list[Running]]:
    """All of them started, and stopped in the end."""
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as logs:
        yield [
            stack.enter_context(Running(make(model), rows, Path(logs) / f"{number}.log"))
            for number, make in enumerate(makers)
        ]


def wrk(server: Running, rows: Sequence[Any], seconds: int) -> dict[str, float]:
    """One round of wrk: 8 keep-alive connections that ask as fast as they are answered."""
    script = "\n".join(
        [
            'wrk.method = "POST"',
            f"wrk.body = [==[{server.contender.request_body(rows)}]==]",
            'wrk.headers["Content-Type"] = "application/json"',
            f'wrk.headers["Authorization"] = "Bearer {KEY}"',
        ]
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        url = f"http://127.0.0.1:{server.port}{server.contender.path}"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "20s", "--latency", "-s", file.name]
        command.append(url)
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"{server.contender.name} failed under load:\n{text}")
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),  # type: ignore[index]
        "p50_ms": _milliseconds(text, "50%"),
        "p99_ms": _milliseconds(text, "99%"),
    }


def _milliseconds(text: str, percentile: str) -> float:
    match = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", text)
    assert match is not None, text
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


def ratio(figures: Figures, name: str, base: str) -> float:
    """Return the median over the rounds of the ratio within a round."""
    pairs = zip(figures[name]["rates"], figures[base]["rates"], strict=True)
    ratios = [float(rate / other) for rate, other in pairs]
    return statistics.median(ratios)


def fixed_rate(makers: Sequence[Maker], model: Path, rounds: int, seconds: int) -> dict[str, Any]:
    """Latencies of one row of the forest at fixed rates: a low one that all can hold, a high one for those on ONNX."""
    asked = json.loads((model / "rows.json").read_text())[:1]
    figures: dict[str, Any] = {}
    with running(makers, model, asked) as servers:
        for rate, chosen in ((LOW_RATE, servers), (HIGH_RATE, servers[:2])):
            samples: dict[str, list[float]] = {server.contender.name: [] for server in chosen}
            for number in range(rounds):
                for server in chosen:
                    request = server.raw_request(asked)
                    times = latencies("127.0.0.1", server.port, request, rate=rate, seconds=seconds)
                    samples[server.contender.name] += times
                    say(f"forest, {rate:g}/s, round {number + 1}/{rounds}  {server.contender.name}")
            figures[f"{rate:g}"] = {name: percentiles(times) for name, times in samples.items()}
    return figures


PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)


def percentiles(times: list[float]) -> dict[str, float]:
    """Milliseconds by percentile."""
    ordered = sorted(times)
    return {f"p{p:g}": 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] for p in PERCENTILES}


def starts(makers: Sequence[Maker], model: Path, rounds: int) -> Figures:
    """Return seconds from start to first answer, and megabytes of a worker after 200 requests; medians."""
    asked = json.loads((model / "rows.json").read_text())[:1]
    figures: Figures = {}
    for make in makers:
        contender = make(model)
        seconds, sizes = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as logs, Running(contender, asked, Path(logs) / "log") as server:
                for _ in range(200):
                    server.ask(contender.request_body(asked))
                seconds.append(server.seconds)
                sizes.append(server.worker_megabytes())
        say(f"start  {contender.name:<24} {statistics.median(seconds):.2f} s")
        figures[contender.name] = {"seconds": statistics.median(seconds), "megabytes": statistics.median(sizes)}
    return figures


def plot(forest: dict[str, Any]) -> None:
    """Latency by percentile, drawn by the peers' interpreter, which has matplotlib."""
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    command = [peer_python("serving"), HERE / "plot.py", PLOT]
    subprocess.run(command, input=json.dumps(forest).encode(), check=True)


def table(result: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    lines = ["| requests a second (p50, p99 in ms) | one row | 1,000 rows |", "|---|--:|--:|"]
    for name in dict.fromkeys([*result["one_row"], *result["thousand_rows"]]):
        cells = [_cell(result[key].get(name)) for key in ("one_row", "thousand_rows")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| ratio | measured | promised | aim |", "|---|--:|--:|--:|"]
    for name, value in result["ratios"].items():
        promised, aim = PROMISES.get(name, (None, None))
        lines.append(f"| {name} | {value:.2f} | {promised or 'reported'} | {aim or ''} |")
    lines += ["", "| forest of 300 trees, one row | requests a second | p50 ms | p99 ms |", "|---|--:|--:|--:|"]
    for rate, entries in result["forest"].items():
        lines += [f"| {name} | {rate} | {e['p50']:.2f} | {e['p99']:.2f} |" for name, e in entries.items()]
    lines += ["", "| | start to first answer, s | memory of a worker, MB |", "|---|--:|--:|"]
    lines += [f"| {name} | {e['seconds']:.2f} | {e['megabytes']:.0f} |" for name, e in result["start"].items()]
    return "\n".join(lines)


def write_table(text: str) -> None:
    """Put the figures into the guide, between its marks."""
    before, _, rest = GUIDE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    GUIDE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{statistics.median(entry['rates']):,.0f} ({entry['p50_ms']:.2f}, {entry['p99_ms']:.2f})"


def hold(ratios: dict[str, float]) -> int:
    """1 when a ratio is below its promise."""
    broken = [f"{name}: {ratios[name]:.2f} < {least}" for name, (least, _) in PROMISES.items() if ratios[name] < least]
    for line in broken:
        print(f"BROKEN  {line}")
    return 1 if broken else 0


def say(line: str) -> None:
    """Progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
