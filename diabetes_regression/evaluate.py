"""The step ``evaluate``: score candidate and champion on the same rows of today's data and write the verdict."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from diabetes_regression import gate, plots
from diabetes_regression.data import Dataset, Values, load, split
from diabetes_regression.errors import DataError
from diabetes_regression.files import read_object, remove, sha256, to_json, verify_candidate, write
from diabetes_regression.model import score_directory
from diabetes_regression.parameters import Parameters, read_parameters

PROJECT = Path(__file__).with_name("project.json")


def evaluate(data: Path, parameters: Path, candidate: Path, champion: Path | None, output: Path) -> str:
    """Write ``verdict.json`` and a plot to ``output``; say the verdict in one line. A reject is no error.

    Raises:
        DataError: data or parameters are not fit, a model cannot be loaded or scored, or too few rows are new to both.
        IntegrityError: the candidate is not what ``train`` wrote.
        StorageError: the verdict cannot be written.
    """
    remove(output / "verdict.json")
    chosen = read_parameters(parameters)
    rule = read_rule(PROJECT, chosen)
    files = verify_candidate(candidate)
    rows = load(data)
    verdict, plot = judge(rule, held_out_rows(rows, chosen), candidate, champion)
    write(output / "plots" / "candidate-against-champion.svg", plot)
    content = {**asdict(verdict), "metric": rule.metric, "direction": rule.direction, "data_sha256": rows.sha256}
    content["candidate_sha256"] = sha256(to_json(files))
    write(output / "verdict.json", to_json(content))
    decision = "accept" if verdict.accept else "reject"
    return f"{decision}: {verdict.reason} (on {verdict.rows} rows; {verdict.rows_left_out} left out)"


def read_rule(project: Path, parameters: Parameters) -> gate.Rule:
    """Return the gate's rule from ``project.json`` (the metric) and the parameters (the thresholds).

    Raises:
        DataError: the metric or its direction is not one that the gate knows.
    """
    next_step = f"name a metric ({', '.join(gate.METRICS)}) and a direction (lower, higher)"
    metric = read_object(project, next_step).get("metric")
    name, direction = (str(metric.get(key)) for key in ("name", "direction")) if isinstance(metric, dict) else ("", "")
    if name not in gate.METRICS or direction not in ("lower", "higher"):
        raise DataError(str(project), f"the gate does not know the metric {metric!r}", next_step)
    return gate.Rule(name, direction, parameters.min_improvement, parameters.require_significant)


def held_out_rows(rows: Dataset, parameters: Parameters) -> Dataset:
    """Today's held-out rows: those that ``train`` kept from the candidate, given the same data and parameters."""
    return rows.take(split(len(rows), parameters.test_size, parameters.random_state)[1])


def judge(rule: gate.Rule, held_out: Dataset, candidate: Path, champion: Path | None) -> tuple[gate.Verdict, bytes]:
    """Return the verdict and its plot. Rows that trained either model are left out and counted.

    Raises:
        DataError: a model cannot be loaded or scored, or too few rows are new to both.
    """
    roles = {"candidate": candidate} if champion is None else {"candidate": candidate, "champion": champion}
    trained = [training_rows(directory, role) for role, directory in roles.items()]
    new = gate.rows_new_to(held_out.hashes, *trained)
    fresh = held_out.take(np.flatnonzero(new))
    left_out = len(held_out) - len(fresh)
    answers = [score_directory(directory, fresh, role) for role, directory in roles.items()]
    if len(answers) == 1:
        return _without_champion(rule, fresh, answers[0], left_out)
    try:
        verdict = gate.compare(rule, fresh.target, answers[0], answers[1], left_out)
    except gate.TooFewRowsError as error:
        raise DataError("evaluate", str(error), "add rows to the data, or hold out more of them (test_size)") from error
    return verdict, plots.comparison(fresh.target, *answers)


def _without_champion(rule: gate.Rule, fresh: Dataset, answers: Values, left_out: int) -> tuple[gate.Verdict, bytes]:
    if not len(fresh):
        raise DataError(
            "evaluate",
            "no held-out row is new to the candidate",
            "train and evaluate on the same data",
        )
    return gate.first_of_its_name(rule, fresh.target, answers, left_out), plots.predictions(fresh.target, answers)


def training_rows(directory: Path, role: str) -> frozenset[str]:
    """Return the hashes of the rows that trained a model.

    Raises:
        DataError: there is no list of them, so that no row can be said to be new to the model.
    """
    path = directory / "training-rows.json"
    next_step = "withdraw that version, and train again" if role == "champion" else "run train again"
    hashes = read_object(path, next_step).get("sha256")
    if not isinstance(hashes, list) or not hashes or not all(isinstance(value, str) for value in hashes):
        raise DataError(str(path), f"does not list the rows that trained the {role}", next_step)
    return frozenset(hashes)
