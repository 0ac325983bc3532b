"""validate: what of a readable file is implausible, and when it has drifted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diabetes_regression import validate as validation
from diabetes_regression.__main__ import main
from diabetes_regression.data import COLUMNS, Problem, read_table
from diabetes_regression.errors import DataError

ROOT = Path(__file__).parents[3]
DATA = ROOT / "data" / "diabetes.csv"
REFERENCE = ROOT / "data" / "reference.json"

Capture = pytest.CaptureFixture[str]


def write(path: Path, values: Any) -> Path:
    """``values`` ``[rows, 11]`` as a CSV file."""
    rows = [",".join(repr(float(value)) for value in row) for row in values]
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def resampled(seed: int, rows: int) -> Any:
    """Rows of the same distribution that repeat nobody: drawn again, each value moved by a hair."""
    generator = np.random.default_rng(seed)
    values = read_table(DATA).values
    drawn = values[generator.integers(len(values), size=rows)]
    return drawn + generator.normal(scale=1e-6, size=drawn.shape)


def problems(path: Path) -> list[Problem]:
    return validation.find_problems(read_table(path))


def test_the_real_file_has_no_problem(tmp_path: Path, capsys: Capture) -> None:
    """The report says so, with the distances measured."""
    report = tmp_path / "report.json"
    assert main(["validate", "--data", str(DATA), "--reference", str(REFERENCE), "--report", str(report)]) == 0
    content = json.loads(report.read_bytes())
    assert (content["rows"], content["problems"]) == (442, [])
    assert set(content["drift"]["columns"]) == set(COLUMNS)
    assert "442 rows, no problem; no drift (largest distance 0.000" in capsys.readouterr().out


def test_without_a_reference_drift_is_not_looked_at(capsys: Capture) -> None:
    """And validate says that it was not."""
    assert main(["validate", "--data", str(DATA)]) == 0
    assert "drift check skipped: no --reference given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("BMI", 32.1, "32.1 is outside the range -0.3 to 0.3"),
        ("S6", -0.31, "-0.31 is outside the range -0.3 to 0.3"),
        ("Y", 0.0, "0 is outside the range 1 to 1000"),
        ("Y", -5.0, "-5 is outside the range 1 to 1000"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, column: str, value: float, message: str) -> None:
    """By file, row and column."""
    values = read_table(DATA).values
    values[9, COLUMNS.index(column)] = value
    path = write(tmp_path / "rows.csv", values)
    assert problems(path) == [Problem(str(path), 11, column, message)]


def test_a_repeated_row_is_named_with_the_row_it_repeats(tmp_path: Path) -> None:
    """A person counted twice would stand on both sides of the split."""
    values = read_table(DATA).values
    values[99] = values[4]
    path = write(tmp_path / "rows.csv", values)
    assert problems(path) == [Problem(str(path), 101, None, "the row repeats row 6")]


def with_first(line: str, value: str) -> str:
    return ",".join([value, *line.split(",")[1:]])


def test_every_problem_is_reported_once_and_in_order(tmp_path: Path, capsys: Capture) -> None:
    """Whoever finds it: the reader (text, missing, infinite, cut rows) or pandera (ranges)."""
    lines = write(tmp_path / "rows.csv", read_table(DATA).values).read_text().splitlines()
    lines[3] = with_first(lines[3], "x")
    lines[5] = lines[5][: lines[5].rindex(",")] + ","
    lines[7] = "1,2,3"
    lines[9] = with_first(lines[9], "9")
    lines[11] = with_first(lines[11], "inf")
    path, report = tmp_path / "rows.csv", tmp_path / "report.json"
    path.write_text("\n".join(lines) + "\n")
    assert main(["validate", "--data", str(path), "--reference", str(REFERENCE), "--report", str(report)]) == 3
    found = [(entry["row"], entry["column"], entry["message"]) for entry in json.loads(report.read_bytes())["problems"]]
    assert found == [
        (4, "AGE", "'x' is not a number"),
        (6, "Y", "the value is missing"),
        (8, None, "the row has 3 fields instead of 11: is it cut off?"),
        (10, "AGE", "9 is outside the range -0.3 to 0.3"),
        (12, "AGE", "the value is infinite"),
    ]
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"{path}, row 4, column AGE: 'x' is not a number (and 4 more); next: ")


def test_the_schema_itself_refuses_missing_values() -> None:
    """pandera would name a missing value even if the reader had not."""
    table = read_table(DATA)
    table.values[0, 0] = np.nan
    assert problems_of(table) == [(2, "AGE", "the value is missing")]


def problems_of(table: Any) -> list[tuple[int | None, str | None, str]]:
    return [(problem.row, problem.column, problem.message) for problem in validation.find_problems(table)]


def test_a_wrong_header_is_reported_with_its_place(tmp_path: Path) -> None:
    """Row 1 and the column, as for any other problem; a file that is not there has no place."""
    path, report = tmp_path / "rows.csv", tmp_path / "report.json"
    assert main(["validate", "--data", str(path), "--report", str(report)]) == 3
    assert json.loads(report.read_bytes())["problems"][0]["message"] == "cannot be read (No such file or directory)"
    path.write_text(DATA.read_text().replace("BMI", "BMX", 1))
    assert main(["validate", "--data", str(path), "--report", str(report)]) == 3
    expected = {
        "row": 1,
        "column": "BMI",
        "message": "the column is missing (there is 'BMX' instead)",
        "file": str(path),
    }
    assert json.loads(report.read_bytes())["problems"] == [expected]


def test_what_is_no_table_is_reported_too(tmp_path: Path, capsys: Capture) -> None:
    """The report exists, whatever was wrong."""
    path, report = tmp_path / "rows.csv", tmp_path / "report.json"
    path.write_bytes(b"\0\1\2")
    assert main(["validate", "--data", str(path), "--report", str(report)]) == 3
    expected = {"file": str(path), "row": None, "column": None, "message": "is binary, not a CSV text"}
    assert json.loads(report.read_bytes())["problems"] == [expected]
    assert capsys.readouterr().err.startswith(f"{path}: is binary, not a CSV text; next: ")


@pytest.mark.parametrize("column", COLUMNS)
def test_a_shifted_column_has_drifted(column: str) -> None:
    """By one standard deviation, in any column and in no other."""
    values = resampled(1, 442)
    index = COLUMNS.index(column)
    values[:, index] += values[:, index].std()
    drift = validation.measure_drift(values, validation.read_reference(REFERENCE))
    assert drifted(drift) == [column]


def test_drift_rejects_the_file(tmp_path: Path, capsys: Capture) -> None:
    """Exit code 3, with the column and what to do if it is meant."""
    values = resampled(1, 442)
    values[:, 2] += 0.05
    path = write(tmp_path / "rows.csv", values)
    assert main(["validate", "--data", str(path), "--reference", str(REFERENCE)]) == 3
    assert f"{path}, column BMI: the values have drifted from the reference (distance 0." in capsys.readouterr().err


def as_reference(values: Any) -> dict[str, Any]:
    return {name: np.sort(values[:, index]) for index, name in enumerate(COLUMNS)}


def drifted(drift: dict[str, Any]) -> list[str]:
    return [name for name, entry in drift["columns"].items() if entry["drifted"]]


@pytest.mark.slow
def test_data_of_the_same_distribution_hardly_ever_drifts() -> None:
    """The 442 people dealt at random into a reference and a file; the limit allows 2 alarms in 200."""
    values = read_table(DATA).values
    alarms = 0
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(len(values))
        alarms += bool(drifted(validation.measure_drift(values[order[:221]], as_reference(values[order[221:]]))))
    assert alarms <= 6


def test_grown_data_of_the_same_distribution_has_not_drifted() -> None:
    """The stored reference stays good for 442 people and 200 more."""
    grown = np.concatenate([read_table(DATA).values, resampled(0, 200)])
    assert drifted(validation.measure_drift(grown, validation.read_reference(REFERENCE))) == []


def test_many_rows_do_not_make_a_small_difference_drift() -> None:
    """With 20,000 rows on both sides a tenth of a standard deviation is certain, and too small to matter."""
    values = resampled(2, 20_000)
    reference = as_reference(values)
    values[:, 2] += 0.1 * values[:, 2].std()
    drift = validation.measure_drift(values, reference)
    assert drift["columns"]["BMI"]["p_value"] < drift["p_limit"]
    assert drifted(drift) == []


def test_a_column_without_a_number_has_drifted() -> None:
    """Nothing is not like the reference."""
    values = resampled(2, 50)
    values[:, 0] = np.nan
    assert validation.measure_drift(values, validation.read_reference(REFERENCE))["columns"]["AGE"]["drifted"]


def test_the_reference_is_made_of_the_data(tmp_path: Path) -> None:
    """The stored one is that of the stored data, so nobody has edited either alone."""
    output = tmp_path / "reference.json"
    assert main(["reference", "--data", str(DATA), "--output", str(output)]) == 0
    assert output.read_bytes() == REFERENCE.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "holds no values for exactly the columns AGE"),
        (json.dumps({"columns": dict.fromkeys(COLUMNS, ["x"])}), "holds values that are no numbers"),
        (json.dumps({"columns": dict.fromkeys(COLUMNS, [])}), "holds values that are no finite numbers"),
        (json.dumps({"columns": dict.fromkeys(COLUMNS, [float("nan")])}), "holds values that are no finite numbers"),
        ("junk", "is not valid JSON"),
    ],
)
def test_a_reference_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """With the command that writes one."""
    path = tmp_path / "reference.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as refusal:
        validation.read_reference(path)
    assert "python -m diabetes_regression reference" in str(refusal.value)
