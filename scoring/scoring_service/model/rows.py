"""The rows of a request body.

``RowReader`` reads at most twice. A typed decoder, built from the signature, takes valid requests at the speed of C.
What it refuses is read again, value by value, to report which row and column is invalid. Only the second reading
decides what is accepted: the first must never accept more or return something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Any

import msgspec

from scoring_service.errors import RequestError, quote
from scoring_service.model.signature import (
    INTEGERS,
    LARGEST_FLOAT,
    Column,
    Row,
    Signature,
    check_value,
    describe_value,
)

_SPARE = 1000
"""Brackets and commas that a body may have beyond those of its rows, for the keys beside ``data``."""

# Each match consumes everything up to the next bracket or comma outside of strings, or to the end. The patterns match
# at every position of any text and never backtrack, so each byte is read once. An unterminated string ends at the end.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_BRACKET = re.compile(rb'(?:[^"\[{]++|' + _STRING + rb")*+(?:[\[{]|\Z)", re.DOTALL)
_COMMA = re.compile(rb'(?:[^",]++|' + _STRING + rb")*+(?:,|\Z)", re.DOTALL)

_NO_NUMBER = re.compile(rb"\b(NaN|Infinity|nan|inf)\b")


class RowReader:
    """Read the rows of request bodies for one signature, at most ``max_rows`` of them."""

    def __init__(self, signature: Signature, max_rows: int) -> None:
        self._columns = signature.inputs
        self._max_rows = max_rows
        self._arrays, self._objects = _decoders(signature.inputs)
        self._optional = [(i, column.default) for i, column in enumerate(self._columns) if not column.required]
        self._generic = msgspec.json.Decoder().decode
        self._scan = msgspec.json.Decoder(msgspec.Raw).decode
        self._most_brackets = max_rows + _SPARE
        self._most_commas = max_rows * len(self._columns) + _SPARE

    def read(self, body: bytes) -> list[Row]:
        """Return the rows, each with one value per column in the signature's order, with defaults filled in.

        Raises:
            RequestError: 400 with the place of the first invalid value; 413 for too many rows.
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
        """Refuse too many rows before they are decoded: an empty row takes 3 bytes here, 64 or more as a list."""
        if body.count(b"[") + body.count(b"{") > self._most_brackets and _has_more(body, _BRACKET, self._most_brackets):
            self._refuse_size(body)

    def _check_commas(self, body: bytes) -> None:
        """Refuse too many values. The fast reading needs no such check: it stops at the first extra value of a row."""
        if body.count(b",") > self._most_commas and _has_more(body, _COMMA, self._most_commas):
            self._refuse_size(body)

    def _refuse_size(self, body: bytes) -> None:
        self._parse(body, self._scan)  # invalid JSON and too deep nesting are reported first
        message = f"a request may hold {self._max_rows} rows of {len(self._columns)} values, this one has more"
        raise RequestError(413, "too_many_rows", message)

    def _check_count(self, rows: Sequence[Any]) -> None:
        if len(rows) > self._max_rows:
            message = f"a request may hold {self._max_rows} rows, this one has {len(rows)}"
            raise RequestError(413, "too_many_rows", message)

    def _read_fast(self, body: bytes) -> list[Row] | None:
        """Return the rows if every value has its column's type, or None if the careful reading has to decide."""
        decode = self._objects if body.find(b"{", 1, 200) > 0 else self._arrays
        try:
            if not body.isascii():
                body.decode()  # the decoder does not validate the bytes of values that it skips
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
            raise RequestError(
                400, "wrong_shape", f'expected {{"data": [[…], …]}}, got {describe_value(content)}', "body"
            )
        if "data" not in content:
            raise RequestError(400, "wrong_shape", 'the object has no "data"', "body")
        data = content["data"]
        if not isinstance(data, list):
            raise RequestError(400, "wrong_shape", f"expected an array of rows, got {describe_value(data)}", "data")
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
                self._refuse_huge_number(body)
            raise RequestError(400, "not_json", _json_problem(body, str(error))) from None

    def _refuse_huge_number(self, body: bytes) -> None:
        """Raise RequestError for a number beyond double precision, with its place if it is in a row."""
        try:
            content = json.loads(body, parse_int=_parse_int, parse_constant=_no_constant)
            rows = content["data"]
            for number, row in enumerate(rows, start=1):
                self._check_row(row, number)
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # something else is invalid, too, and the caller reports it
        raise RequestError(400, "out_of_range", "the body holds a number that is too large", "body")

    def _check_row(self, row: Any, number: int) -> Row:
        if isinstance(row, dict):
            return self._check_object(row, number)
        if not isinstance(row, list):
            message = f"expected an array or an object, got {describe_value(row)}"
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
    """Return whether ``one`` (_BRACKET or _COMMA) matches more than ``limit`` times."""
    return next(islice(one.finditer(body), limit, None), None) is not None


def _parse_int(text: str) -> float:
    return int(text) if len(text) < 400 else float(text)  # more digits than double precision has become infinity


def _no_constant(text: str) -> float:
    raise ValueError(text)


def _json_problem(body: bytes, error: str) -> str:
    """Return why the body is not JSON, with a hint if it contains NaN or infinity in place of a number."""
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
    # Optional fields may precede required ones only with keywords. The order of the fields stays that of the columns.
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
    elif column.type in INTEGERS:
        limit = 1 << INTEGERS[column.type]
        kind = Annotated[int, msgspec.Meta(ge=-limit, le=limit - 1)]
    return kind if column.required else kind | None
