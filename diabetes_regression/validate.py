"""The step ``validate``: is the data what the model expects, and does it still look like the data it was made for?

``data`` reads the file and notes fields that are no numbers; pandera holds the rows to the schema; a two-sample
Kolmogorov-Smirnov test for each column looks for drift (docs/adr/0022-drift.md says why this one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from scipy.stats import ks_2samp

from diabetes_regression.data import COLUMNS, FEATURES, TARGET, Problem, RejectedDataError, Table, Values, read_table
from diabetes_regression.errors import DataError
from diabetes_regression.files import read_object, to_json, write

FALSE_ALARMS = 0.01
"""How often data of the reference's distribution may be rejected for drift, over all columns together."""

SAME = 0.01
"""Values within this share of the reference's standard deviation are the same value. Columns such as SEX hold few
different values; without this, another rounding of them would look like another distribution."""

LEAST_DISTANCE = 0.1
"""A smaller distance between two distributions (of 1) is not drift, however certain many rows make it."""

_FEATURE = pa.Column(
    float, [pa.Check.in_range(-0.3, 0.3, error="outside the range -0.3 to 0.3")], nullable=False, required=True
)
_TARGET = pa.Column(
    float, [pa.Check.in_range(1, 1000, error="outside the range 1 to 1000")], nullable=False, required=True
)

SCHEMA = pa.DataFrameSchema({**{name: _FEATURE for name in FEATURES}, TARGET: _TARGET}, strict=True, ordered=True)
"""The columns and their ranges. Features are centred and divided by their norm over 442 people: 0.3 is six standard
deviations. The target is a score; 25 to 346 have been seen."""


def validate(data: Path, reference: Path | None, report: Path | None) -> str:
    """Check ``data``, write the report if one is asked for, and say in one line what was found.

    Raises:
        DataError: something is wrong; the message names the first problem, the report all of them.
    """
    try:
        table = read_table(data)
    except DataError as error:
        unreadable = [Problem(str(data), None, None, error.what)]
        _write_report(report, 0, error.problems if isinstance(error, RejectedDataError) else unreadable, {})
        raise
    drift = measure_drift(table.values, read_reference(reference)) if reference else {}
    problems = [*find_problems(table), *_drift_problems(table.file, drift)]
    _write_report(report, len(table.values), problems, drift)
    if problems:
        raise RejectedDataError(problems)
    return f"{data}: {len(table.values)} rows, no problem; {_describe(drift)}"


def _write_report(path: Path | None, rows: int, problems: Sequence[Problem], drift: Mapping[str, Any]) -> None:
    if path is None:
        return
    entries = [{"file": p.file, "row": p.row, "column": p.column, "message": p.message} for p in problems]
    write(path, to_json({"rows": rows, "problems": entries, "drift": drift}))


def _describe(drift: Mapping[str, Any]) -> str:
    if not drift:
        return "drift check skipped: no --reference given"
    column, largest = max(drift["columns"].items(), key=lambda item: item[1]["distance"])
    return f"no drift (largest distance {largest['distance']:.3f}, column {column})"


def find_problems(table: Table) -> list[Problem]:
    """Return the problems that the reader and pandera report, each field once, in the order of the file."""
    by_place = {
        (problem.row, problem.column): problem for problem in [*_schema_problems(table), *_repeated_rows(table)]
    }
    unread = {problem.row for problem in table.problems if problem.column is None}
    by_place = {place: problem for place, problem in by_place.items() if place[0] not in unread}
    by_place.update({(problem.row, problem.column): problem for problem in table.problems})
    return [by_place[place] for place in sorted(by_place, key=lambda place: (place[0] or 0, place[1] or ""))]


def _schema_problems(table: Table) -> list[Problem]:
    frame = pd.DataFrame(table.values, columns=list(COLUMNS))
    try:
        SCHEMA.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        return [_problem(table, case) for case in error.failure_cases.to_dict("records")]
    return []


def _problem(table: Table, case: Mapping[Any, Any]) -> Problem:
    value = case["failure_case"]
    message = "the value is missing" if pd.isna(value) else f"{value:g} is {case['check']}"
    return Problem(table.file, table.lines[int(case["index"])], str(case["column"]), message)


def _repeated_rows(table: Table) -> list[Problem]:
    """Rows equal to an earlier one. pandera could tell that a row repeats, but not which one it repeats."""
    first: dict[bytes, int] = {}
    problems = []
    for line, row in zip(table.lines, table.values, strict=True):
        earlier = first.setdefault((row + 0.0).tobytes(), line)
        if earlier != line and not np.isnan(row).any():
            problems.append(Problem(table.file, line, None, f"the row repeats row {earlier}"))
    return problems


def make_reference(data: Path, output: Path) -> str:
    """Write the sorted values of each column of ``data``, which later data is compared with; say so in one line.

    Raises:
        DataError: ``data`` is not fit to be a reference.
    """
    validate(data, None, None)
    table = read_table(data)
    columns = {name: sorted(table.values[:, index].tolist()) for index, name in enumerate(COLUMNS)}
    write(output, to_json({"data_sha256": table.sha256, "columns": columns}))
    return f"{output}: the reference for drift, from {len(table.values)} rows of {data}"


def read_reference(path: Path) -> dict[str, Values]:
    """Return the values of each column that :func:`make_reference` wrote, sorted: ``[rows]`` each.

    Raises:
        DataError: the file is missing or not such a reference.
    """
    renew = (
        "write it anew: python -m diabetes_regression reference --data data/diabetes.csv --output data/reference.json"
    )
    columns = read_object(path, renew).get("columns")
    if not isinstance(columns, dict) or set(columns) != set(COLUMNS):
        raise DataError(str(path), f"holds no values for exactly the columns {', '.join(COLUMNS)}", renew)
    try:
        values = {name: np.sort(np.array(columns[name], dtype=np.float64).ravel()) for name in COLUMNS}
    except (TypeError, ValueError) as error:
        raise DataError(str(path), "holds values that are no numbers", renew) from error
    if any(not column.size or not np.isfinite(column).all() for column in values.values()):
        raise DataError(str(path), "holds values that are no finite numbers", renew)
    return values


def measure_drift(values: Values, reference: Mapping[str, Values]) -> dict[str, Any]:
    """Compare each column of ``values`` ``[rows, 11]`` with its reference.

    A column drifts when the Kolmogorov-Smirnov distance is at least ``LEAST_DISTANCE`` and its p-value is below
    ``FALSE_ALARMS`` divided by the number of columns (Bonferroni).
    """
    limit = FALSE_ALARMS / len(COLUMNS)
    columns = {}
    for index, name in enumerate(COLUMNS):
        present = _snap(values[~np.isnan(values[:, index]), index], reference[name])
        result = ks_2samp(present, reference[name], method="asymp") if present.size else None
        distance, p_value = (float(result.statistic), float(result.pvalue)) if result else (1.0, 0.0)
        drifted = distance >= LEAST_DISTANCE and p_value < limit
        columns[name] = {"distance": distance, "p_value": p_value, "drifted": drifted}
    return {
        "test": "two-sample Kolmogorov-Smirnov",
        "p_limit": limit,
        "least_distance": LEAST_DISTANCE,
        "columns": columns,
    }


def _snap(values: Values, reference: Values) -> Values:
    """``values`` ``[rows]``, each replaced by the nearest of the sorted ``reference`` ``[n]`` if that is the same."""
    right = np.searchsorted(reference, values).clip(0, len(reference) - 1)
    left = (right - 1).clip(0)
    nearest = np.where(values - reference[left] < reference[right] - values, reference[left], reference[right])
    return np.where(np.abs(nearest - values) <= SAME * reference.std(), nearest, values)


def _drift_problems(file: str, drift: Mapping[str, Any]) -> list[Problem]:
    return [
        Problem(
            file,
            None,
            name,
            f"the values have drifted from the reference (distance {column['distance']:.2f}, "
            f"p {column['p_value']:.1g}): if that is meant, write a new reference",
        )
        for name, column in drift.get("columns", {}).items()
        if column["drifted"]
    ]
