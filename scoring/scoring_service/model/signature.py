"""The signature of a model: the names and types of its inputs and outputs, and the check of a value against them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from scoring_service.errors import PackageError, RequestError, quote

Value: TypeAlias = "float | int | bool | str"
Row: TypeAlias = "Sequence[Value]"
"""One value per column, in the signature's order."""

FLOATS = ("double", "float")
INTEGERS = {"long": 63, "integer": 31}
"""Bits of the absolute value."""

LARGEST_FLOAT = 3.4028234663852886e38
"""The largest number of single precision."""

_TYPES = (*FLOATS, *INTEGERS, "boolean", "string")
_EXPECTED = {"boolean": "true or false", "string": "a string", "long": "a whole number", "integer": "a whole number"}


@dataclass(frozen=True)
class Column:
    """An input or output. ``default`` replaces an optional input that is missing or null."""

    name: str
    type: str
    required: bool = True
    default: Value | None = None


@dataclass(frozen=True)
class Signature:
    """The inputs, in the order of a row's values, and the outputs."""

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]

    @classmethod
    def from_json(cls, raw: bytes, where: str) -> Signature:
        """Parse ``signature.json``.

        Raises:
            PackageError: it is not JSON of that form, or a type, a default or the names are invalid.
        """
        try:
            content = json.loads(raw)
            inputs = tuple(_column(entry, where) for entry in content["inputs"])
            outputs = tuple(_column(entry, where) for entry in content["outputs"])
        except (ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
            raise PackageError(f"is not a signature ({error!r})", where=where, next_step="train again") from None
        names = [column.name for column in inputs]
        if not inputs or not outputs or len(set(names)) != len(names):
            raise PackageError("needs inputs with different names, and outputs", where=where, next_step="train again")
        return cls(inputs, outputs)


def _column(entry: Mapping[str, Any], where: str) -> Column:
    name, kind, required = str(entry["name"]), str(entry["type"]), bool(entry.get("required", True))
    if kind not in _TYPES:
        raise PackageError(f"column {name}: invalid type {kind!r}: expected one of {', '.join(_TYPES)}", where=where)
    if required:
        return Column(name, kind)
    stated = entry.get("default")
    default = _implied_default(name, kind, where) if stated is None else check_value(stated, Column(name, kind), name)
    return Column(name, kind, False, default)


def _implied_default(name: str, kind: str, where: str) -> Value:
    if kind in FLOATS:
        return math.nan
    if kind == "string":
        return ""
    raise PackageError(f"column {name}: an optional {kind} needs a default", where=where, next_step="give it one")


def check_value(value: Any, column: Column, place: str) -> Value:
    """Return ``value`` as the column's type, or the default for null.

    Raises:
        RequestError: 400, with ``place``.
    """
    if value is None and not column.required and column.default is not None:
        return column.default
    if column.type == "string" and isinstance(value, str):
        return value
    if column.type == "boolean" and isinstance(value, bool):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if column.type in FLOATS:
            return _check_float(value, column, place)
        if column.type in INTEGERS and value == int(value):
            return _check_whole(int(value), column, place)
    expected = _EXPECTED.get(column.type, "a number")
    raise RequestError(400, "wrong_type", f"expected {expected}, got {describe_value(value)}", place)


def _check_float(value: float, column: Column, place: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) or (column.type == "float" and abs(number) > LARGEST_FLOAT):
        raise RequestError(400, "out_of_range", f"the number is too large for type {column.type}", place)
    return number


def _check_whole(value: int, column: Column, place: str) -> int:
    limit = 1 << INTEGERS[column.type]
    if not -limit <= value < limit:
        raise RequestError(400, "out_of_range", f"the number is too large for type {column.type}", place)
    return value


def describe_value(value: Any) -> str:
    """Return ``value`` as messages show it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return quote(value)
