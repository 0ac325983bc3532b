"""A second project, with the standard library alone: predicts the mean of Y plus ``shift``, trained in milliseconds."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def read(path: str) -> Any:
    return json.loads(Path(path).read_bytes())


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def column(path: str) -> list[float]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [float(row["Y"]) for row in rows]
    except (KeyError, ValueError) as error:
        sys.exit(fail(f"error: {path}: not a number in column Y ({error})"))


def fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 3


def mse(values: list[float], prediction: float) -> float:
    return sum((value - prediction) ** 2 for value in values) / len(values)


def validate(args: argparse.Namespace) -> None:
    print(f"{len(column(args.data))} rows are fine")


def train(args: argparse.Namespace) -> None:
    parameters = read(args.parameters)
    time.sleep(parameters.get("seconds", 0))
    values = column(args.data)
    mean = sum(values) / len(values) + parameters["shift"]
    output = Path(args.output)
    write(output / "model/mean.json", mean)
    shutil.copyfile(Path(__file__).parent / "score.py", output / "model/score.py")
    (output / "model/requirements.txt").write_text("")
    write(
        output / "model/signature.json",
        {
            "inputs": [{"name": "X", "type": "double", "required": True}],
            "outputs": [{"name": "Y", "type": "double"}],
        },
    )
    write(
        output / "model/examples.json",
        {
            "tolerance": 1e-6,
            "examples": [{"request": {"data": [[1.0]]}, "response": {"result": [mean]}}],
        },
    )
    write(output / "metrics.json", {"mse": mse(values, mean)})
    write(
        output / "training-rows.json",
        {"sha256": [hashlib.sha256(repr(value).encode()).hexdigest() for value in values]},
    )
    (output / "plots").mkdir(exist_ok=True)
    (output / "plots" / "mean.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    print("trained")


def evaluate(args: argparse.Namespace) -> None:
    values = column(args.data)
    candidate = mse(values, read(f"{args.candidate}/model/mean.json"))
    champion = mse(values, read(f"{args.champion}/model/mean.json")) if args.champion else None
    accept = champion is None or candidate < champion
    write(
        Path(args.output) / "verdict.json",
        {
            "accept": accept,
            "reason": "first of its name" if champion is None else "better" if accept else "not better",
            "metric": "mse",
            "direction": "lower",
            "candidate": candidate,
            "champion": champion,
            "improvement": None if champion is None else champion - candidate,
            "rows": len(values),
            "rows_left_out": 0,
            "bootstrap": None,
        },
    )


def register(args: argparse.Namespace) -> None:
    candidate = Path(args.candidate)
    paths = [*sorted((candidate / "model").rglob("*")), candidate / "metrics.json", candidate / "training-rows.json"]
    files = {path.relative_to(candidate).as_posix(): sha256(path) for path in paths if path.is_file()}
    write(
        Path(args.output) / "registration.json",
        {
            "model_name": "mean_regression",
            "files": files,
            "metrics": read(f"{args.candidate}/metrics.json"),
            "data_sha256": "",
            "training_rows_sha256": files["training-rows.json"],
            "runtime": "script",
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mean_regression")
    steps = parser.add_subparsers(required=True)
    options = {
        validate: "data reference report",
        train: "data parameters output",
        evaluate: "data parameters candidate champion output",
        register: "candidate verdict output",
    }
    for step, names in options.items():
        sub = steps.add_parser(step.__name__)
        sub.set_defaults(run=step)
        for name in names.split():
            sub.add_argument(f"--{name}")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
