"""parameters.json: what may stand in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diabetes_regression.errors import DataError
from diabetes_regression.parameters import Parameters, read_parameters

PARAMETERS = Path(__file__).parents[3] / "diabetes_regression" / "parameters.json"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "parameters.json"
    path.write_text(text)
    return path


def test_the_parameters_of_the_project_are_those_of_the_model_served() -> None:
    """Ridge with alpha 0.4, a fifth held out with seed 0, any improvement counts."""
    expected = Parameters(alpha=0.4, test_size=0.2, random_state=0, min_improvement=0, require_significant=False)
    assert read_parameters(PARAMETERS) == expected


def test_what_the_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    """One changed value is all that need be written."""
    assert read_parameters(write(tmp_path, '{"alpha": 0.1}')) == Parameters(alpha=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"alhpa": 0.4}', "there is no parameter 'alhpa'; next: did you mean 'alpha'?"),
        (
            '{"epochs": 4}',
            "there is no parameter 'epochs'; next: use alpha, test_size, random_state, min_improvement, ",
        ),
        ('{"alpha": -1}', "parameter 'alpha' is -1, which is not a number from 0 to 1000000; next: set alpha"),
        ('{"alpha": "0.4"}', """parameter 'alpha' is "0.4", which is not a number"""),
        ('{"alpha": NaN}', "parameter 'alpha' is NaN, which is not a number"),
        ('{"alpha": true}', "parameter 'alpha' is true, which is not a number"),
        ('{"alpha": null}', "parameter 'alpha' is null, which is not a number"),
        ('{"alpha": 1e999}', "parameter 'alpha' is Infinity, which is not a number"),
        (f'{{"min_improvement": 1{"0" * 400}}}', "parameter 'min_improvement' is 1000"),
        ('{"test_size": 0}', "parameter 'test_size' is 0, which is not a number from 0.05 to 0.5"),
        ('{"test_size": 0.9}', "parameter 'test_size' is 0.9, which"),
        ('{"random_state": 0.5}', "parameter 'random_state' is 0.5, which is not a whole number"),
        ('{"random_state": -1}', "parameter 'random_state' is -1, which"),
        ('{"random_state": true}', "parameter 'random_state' is true, which"),
        ('{"min_improvement": -0.1}', "parameter 'min_improvement' is -0.1, which"),
        ('{"require_significant": 1}', "parameter 'require_significant' is 1, which is not true or false"),
        ('{"alpha": 0.1, "alpha": 0.4}', "is not valid JSON (the name 'alpha' appears twice)"),
        ("alpha: 0.4", "is not valid JSON (Expecting value"),
        ("", "is not valid JSON (Expecting value"),
        ("[" * 100_000, "is not valid JSON (maximum recursion depth"),
        ("[]", "holds a JSON list instead of an object"),
    ],
)
def test_a_parameter_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """In one line with the file, the name, why, and what would do."""
    path = write(tmp_path, text)
    with pytest.raises(DataError) as refusal:
        read_parameters(path)
    assert str(refusal.value).startswith(f"{path}: {message}")
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Binary content is not JSON either."""
    path = tmp_path / "parameters.json"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_parameters(path)
