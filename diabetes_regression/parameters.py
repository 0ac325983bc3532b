"""The parameters: hyper-parameters of training and thresholds of the gate, read from one JSON file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diabetes_regression.errors import DataError
from diabetes_regression.files import read_object


@dataclass(frozen=True)
class Parameters:
    """Everything a person may tune.

    ``alpha`` is the L2 penalty of the ridge regression; ``test_size`` the share of rows held out and ``random_state``
    the seed that chooses them; ``min_improvement`` is how much better than the champion a candidate must be, in units
    of the metric; with ``require_significant`` the bootstrap must agree.
    """

    alpha: float = 0.4
    test_size: float = 0.2
    random_state: int = 0
    min_improvement: float = 0.0
    require_significant: bool = False


def _within(value: object, least: float, most: float) -> bool:
    """Return whether ``value`` is a number in the range. NaN is in none, and Python's True is not a number here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "alpha": ("a number from 0 to 1000000", lambda value: _within(value, 0, 1_000_000)),
    "test_size": ("a number from 0.05 to 0.5", lambda value: _within(value, 0.05, 0.5)),
    "random_state": (
        "a whole number from 0 to 4294967295",
        lambda value: isinstance(value, int) and _within(value, 0, 2**32 - 1),
    ),
    "min_improvement": ("a number from 0 to 1000000000", lambda value: _within(value, 0, 1e9)),
    "require_significant": ("true or false", lambda value: isinstance(value, bool)),
}


def read_parameters(path: Path) -> Parameters:
    """Return the parameters in ``path``; one that the file does not name keeps its default.

    Raises:
        DataError: not a JSON object, an unknown name, or a value of the wrong type or out of range.
    """
    values = read_object(path, "write the parameters as one JSON object, as docs/project.md shows")
    for name, value in values.items():
        _check(path, name, value)
    return Parameters(**values)


def _check(path: Path, name: str, value: object) -> None:
    if name not in _RULES:
        close = difflib.get_close_matches(name, _RULES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use {', '.join(_RULES)}"
        raise DataError(str(path), f"there is no parameter {name!r}", hint)
    expected, accepts = _RULES[name]
    if not accepts(value):
        shown = json.dumps(value)[:40]
        raise DataError(
            str(path), f"parameter {name!r} is {shown}, which is not {expected}", f"set {name} to {expected}"
        )
