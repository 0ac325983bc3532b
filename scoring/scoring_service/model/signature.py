"""The signature of a model, and the rows that a request holds according to it.

``RowReader`` reads twice at most: a typed decoder built from the signature takes good requests at the speed of C; what
it refuses is read again, value by value, to say which row and column is wrong. The second reading alone decides what is
acceptable; the first must never accept more or answer differently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, TypeAlias

import msgspec

from scoring_service.errors import PackageError, RequestError, quote

Value: TypeAlias = "float | int | bool | str"
Row: TypeAlias = "Sequence[Value]"

_FLOATS = ("double", "float")
_WHOLE = {"long": 63, "integer": 31}
_TYPES = (*_FLOATS, *_WHOLE, "boolean", "string")
_EXPECTED = {"boolean": "true or false", "string": "a string", "long": "a whole number", "integer": "a whole number"}
_SPARE = 1000
"""Brackets and commas that a body may have beyond those of its rows, for the keys beside ``data``."""

# Everything up to the next one that is in no string, or to the end. They match at every place of any text, so nothing
# is looked at twice; a string without end is one to the end.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_BRACKET = re.compile(rb'(?:[^"\[{]++|' + _STRING + rb")*+(?:[\[{]|\Z)", re.DOTALL)
_COMMA = re.compile(rb'(?:[^",]++|' + _STRING + rb")*+(?:,|\Z)", re.DOTALL)

_NO_NUMBER = re.compile(rb"\b(NaN|Infinity|nan|inf)\b")

LARGEST_FLOAT = 3.4028234663852886e38
"""The largest number of single precision."""


@dataclass(frozen=True)
class Column:
    """An input or output. ``default`` stands in for an optional input that is missing or null."""

    name: str
    type: str
    required: bool = True
    default: Value | None = None


@dataclass(frozen=True)
class Signature:
    """The inputs in the order in which rows hold them, and the outputs."""

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]

    @classmethod
    def from_json(cls, raw: bytes, where: str) -> Signature:
        """Read ``signature.json``; raises PackageError when it is not one."""
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
        raise PackageError(f"column {name}: type {kind!r} is none of {', '.join(_TYPES)}", where=where)
    if required:
        return Column(name, kind)
    given = entry.get("default")
    default = _implied_default(name, kind, where) if given is None else check_value(given, Column(name, kind), name)
    return Column(name, kind, False, default)


def _implied_default(name: str, kind: str, where: str) -> Value:
    if kind in _FLOATS:
        return math.nan
    if kind == "string":
        return ""
    raise PackageError(f"column {name}: an optional {kind} needs a default", where=where, next_step="give it one")


def check_value(value: Any, column: Column, place: str) -> Value:
    """``value`` as the column's type, or its default for null; raises RequestError naming ``place``."""
    if value is None and not column.required and column.default is not None:
        return column.default
    if column.type == "string" and isinstance(value, str):
        return value
    if column.type == "boolean" and isinstance(value, bool):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if column.type in _FLOATS:
            return _check_float(value, column, place)
        if column.type in _WHOLE and value == int(value):
            return _check_whole(int(value), column, place)
    expected = _EXPECTED.get(column.type, "a number")
    raise RequestError(400, "wrong_type", f"expected {expected}, got {_shown(value)}", place)


def _check_float(value: float, column: Column, place: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) or (column.type == "float" and abs(number) > LARGEST_FLOAT):
        raise RequestError(400, "out_of_range", f"the number is too large for type {column.type}", place)
    return number


def _check_whole(value: int, column: Column, place: str) -> int:
    limit = 1 << _WHOLE[column.type]
    if not -limit <= value < limit:
        raise RequestError(400, "out_of_range", f"the number is too large for type {column.type}", place)
    return value


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return quote(value)


class RowReader:
    """Reads the rows of request bodies for one signature, of at most ``max_rows`` rows."""

    def __init__(self, signature: Signature, max_rows: int) -> None:
        self._columns = signature.inputs
        self._max_rows = max_rows
        self._arrays, self._objects = _decoders(signature.inputs)
        self._optional = [(i, column.default) for i, column in enumerate(self._columns) if not column.required]
        self._generic = msgspec.json.Decoder().decode
        self._skim = msgspec.json.Decoder(msgspec.Raw).decode
        self._most_brackets = max_rows + _SPARE
        self._most_commas = max_rows * len(self._columns) + _SPARE

    def read(self, body: bytes) -> list[Row]:
        """The rows, each with one value a column in the signature's order, defaults filled in.

        Raises:
            RequestError: 400 with the place of the first wrong value; 413 for too many rows.
        """
        if len(body) > self._most_brackets:
            self._check_brackets(body)
        rows = self._read_fast(body)
        if rows is None:
            rows = self._read_carefully(body)
        if not rows:
            raise RequestError(400, "no_rows", "data holds no rows", "data")
        self._check_count(rows)
        return rows

    def _check_brackets(self, body: bytes) -> None:
        """Refuse more rows than are allowed before they are made: an empty one takes 3 bytes here, 64 or more there."""
        if body.count(b"[") + body.count(b"{") > self._most_brackets and _has_more(body, _BRACKET, self._most_brackets):
            self._refuse_size(body)

    def _check_commas(self, body: bytes) -> None:
        """The same for values; the fast reading needs no such check, it ends at the first value too many in a row."""
        if body.count(b",") > self._most_commas and _has_more(body, _COMMA, self._most_commas):
            self._refuse_size(body)

    def _refuse_size(self, body: bytes) -> None:
        self._parse(body, self._skim)  # what is no JSON, or has no bottom, is told so
        message = f"a request may hold {self._max_rows} rows of {len(self._columns)} values, this one has more"
        raise RequestError(413, "too_many_rows", message)

    def _check_count(self, rows: Sequence[Any]) -> None:
        if len(rows) > self._max_rows:
            message = f"a request may hold {self._max_rows} rows, this one has {len(rows)}"
            raise RequestError(413, "too_many_rows", message)

    def _read_fast(self, body: bytes) -> list[Row] | None:
        """The rows when every value is plainly of its type; None when the careful reading has to say."""
        decode = self._objects if body.find(b"{", 1, 200) > 0 else self._arrays
        try:
            if not body.isascii():
                body.decode()  # the decoder skips what it does not need without looking at its bytes
            rows: list[Row] = decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return self._fill(rows) if self._optional else rows

    def _fill(self, rows: list[Row]) -> list[Row]:
        filled = []
        for row in rows:
            if None in row:
                values = list(row)
                for index, default in self._optional:
                    if values[index] is None and default is not None:
                        values[index] = default
                row = values
            filled.append(row)
        return filled

    def _read_carefully(self, body: bytes) -> list[Row]:
        self._check_commas(body)
        content = self._parse(body, self._generic)
        if not isinstance(content, dict):
            raise RequestError(400, "wrong_shape", f'expected {{"data": [[…], …]}}, got {_shown(content)}', "body")
        if "data" not in content:
            raise RequestError(400, "wrong_shape", 'the object has no "data"', "body")
        data = content["data"]
        if not isinstance(data, list):
            raise RequestError(400, "wrong_shape", f"expected an array of rows, got {_shown(data)}", "data")
        self._check_count(data)
        return [self._check_row(row, number) for number, row in enumerate(data, start=1)]

    def _parse(self, body: bytes, decode: Callable[[bytes], Any]) -> Any:
        try:
            body.decode("utf-8")
            return decode(body)
        except UnicodeDecodeError as error:
            raise RequestError(400, "not_utf8", "the body is not UTF-8", f"byte {error.start}") from None
        except RecursionError:
            raise RequestError(400, "too_deep", "the body is nested too deeply") from None
        except (msgspec.MsgspecError, ValueError) as error:
            if "out of range" in str(error):
                self._find_huge_number(body)
            raise RequestError(400, "not_json", _json_problem(body, str(error))) from None

    def _find_huge_number(self, body: bytes) -> None:
        """Raise for a number beyond double, which is JSON all the same: with its place, when it stands in a row."""
        try:
            content = json.loads(body, parse_int=_parse_int, parse_constant=_no_constant)
            rows = content["data"]
            for number, row in enumerate(rows, start=1):
                self._check_row(row, number)
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # there is more that is wrong, and the caller knows it
        raise RequestError(400, "out_of_range", "the body holds a number that is too large", "body")

    def _check_row(self, row: Any, number: int) -> Row:
        if isinstance(row, dict):
            return self._check_object(row, number)
        if not isinstance(row, list):
            message = f"expected an array or an object, got {_shown(row)}"
            raise RequestError(400, "wrong_shape", message, f"row {number}")
        if len(row) != len(self._columns):
            raise RequestError(
                400, "wrong_width", f"expected {len(self._columns)} values, got {len(row)}", f"row {number}"
            )
        return [
            check_value(value, column, f"row {number}, column {column.name}")
            for value, column in zip(row, self._columns, strict=True)
        ]

    def _check_object(self, row: dict[str, Any], number: int) -> Row:
        known = {column.name for column in self._columns}
        for name in row:
            if name not in known:
                raise RequestError(400, "unknown_column", f"the model has no column {quote(name)}", f"row {number}")
        places = [(column, f"row {number}, column {column.name}") for column in self._columns]
        for column, place in places:
            if column.required and column.name not in row:
                raise RequestError(400, "missing_column", "the column is missing", place)
        return [check_value(row.get(column.name), column, place) for column, place in places]


def _has_more(body: bytes, one: re.Pattern[bytes], limit: int) -> bool:
    """Whether ``one``, which also takes what comes before, is found more than ``limit`` times outside of strings."""
    return next(islice(one.finditer(body), limit, None), None) is not None


def _parse_int(text: str) -> float:
    return int(text) if len(text) < 400 else float(text)  # more digits than double has make an infinite number


def _no_constant(text: str) -> float:
    raise ValueError(text)


def _json_problem(body: bytes, error: str) -> str:
    """Why the body is no JSON; the words that people write for numbers which JSON does not have get a hint."""
    if not body.strip():
        return "the body is empty"
    at = re.search(r"\(byte (\d+)\)$", error)
    if at and _NO_NUMBER.search(body, max(0, int(at[1]) - 4), int(at[1]) + 9):
        return f"{quote(error)[1:-1]}; JSON has no NaN or infinity, send null for a missing value"
    return quote(error)[1:-1]


def _decoders(columns: Sequence[Column]) -> tuple[Any, Any]:
    types = [_decoded_type(column) for column in columns]
    arrays = msgspec.defstruct("Arrays", [("data", list[tuple[tuple(types)]])])  # type: ignore[misc]
    fields: list[Any] = [
        (f"c{i}", kind) if column.required else (f"c{i}", kind, None)
        for i, (column, kind) in enumerate(zip(columns, types, strict=True))
    ]
    names = {f"c{i}": column.name for i, column in enumerate(columns)}
    # Optional fields may come before required ones only by keyword; the order of the fields stays that of the columns.
    row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, kw_only=True)
    objects = msgspec.defstruct("Objects", [("data", list[row])])  # type: ignore[valid-type]
    decode_arrays, decode_objects = msgspec.json.Decoder(arrays).decode, msgspec.json.Decoder(objects).decode

    def read_arrays(body: bytes) -> Any:
        return decode_arrays(body).data  # type: ignore[attr-defined]

    def read_objects(body: bytes) -> Any:
        return list(map(msgspec.structs.astuple, decode_objects(body).data))  # type: ignore[attr-defined]

    return read_arrays, read_objects


def _decoded_type(column: Column) -> Any:
    kind: Any = {"boolean": bool, "string": str}.get(column.type, float)
    if column.type == "float":
        kind = Annotated[float, msgspec.Meta(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)]
    elif column.type in _WHOLE:
        limit = 1 << _WHOLE[column.type]
        kind = Annotated[int, msgspec.Meta(ge=-limit, le=limit - 1)]
    return kind if column.required else kind | None
