"""Rows are read as the signature says; what is wrong is named by row and column."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.errors import PackageError, RequestError
from scoring_service.model.rows import RowReader
from scoring_service.model.signature import Signature
from tests.support.packages import LINEAR, MIXED

TOO_LARGE = "the number is too large for type double"


def reader(signature: Any = LINEAR, max_rows: int = 100) -> RowReader:
    return RowReader(Signature.from_json(json.dumps(signature).encode(), "signature.json"), max_rows)


def read(data: Any, signature: Any = LINEAR) -> list[list[Any]]:
    return [list(row) for row in reader(signature).read(json.dumps({"data": data}).encode())]


def problem(body: bytes, signature: Any = LINEAR) -> tuple[int, str, str, str]:
    with pytest.raises(RequestError) as caught:
        reader(signature).read(body)
    error = caught.value
    return error.status, error.code, error.place, error.message


def test_rows_come_as_arrays_or_as_objects() -> None:
    """Both forms give values in the signature's order."""
    assert read([[1, 2, 3]]) == [[1, 2, 3]]
    assert read([{"BP": 3, "AGE": 1, "BMI": 2}]) == [[1, 2, 3]]
    assert read([[1, 2, 3], {"BP": 6, "AGE": 4, "BMI": 5}]) == [[1, 2, 3], [4, 5, 6]]


def test_every_type_and_the_defaults_of_optional_columns() -> None:
    """A missing or null optional value becomes its default, NaN and "" when there is none."""
    assert read([[1.5, None, 2, None, True, None]], MIXED) == [[1.5, 0.5, 2, 7, True, ""]]
    assert read([{"number": 1.5, "count": 2, "flag": False, "word": "é#"}], MIXED) == [[1.5, 0.5, 2, 7, False, "é#"]]
    optional = {"inputs": [{"name": "x", "type": "double", "required": False}], "outputs": LINEAR["outputs"]}
    assert math.isnan(read([[None]], optional)[0][0])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"data": [[1,2,3],[1,2,3],[1,"x",3]]}', ("wrong_type", "row 3, column BMI", 'expected a number, got "x"')),
        (b'{"data": [[1,2,null]]}', ("wrong_type", "row 1, column BP", "expected a number, got null")),
        (b'{"data": [[1,2,true]]}', ("wrong_type", "row 1, column BP", "expected a number, got true")),
        (b'{"data": [[1,2,[3]]]}', ("wrong_type", "row 1, column BP", "expected a number, got an array")),
        (b'{"data": [[1,2,3],[1,2]]}', ("wrong_width", "row 2", "expected 3 values, got 2")),
        (b'{"data": [[1,2,3,4]]}', ("wrong_width", "row 1", "expected 3 values, got 4")),
        (b'{"data": [7]}', ("wrong_shape", "row 1", "expected an array or an object, got 7")),
        (b'{"data": [{"AGE":1,"BMI":2}]}', ("missing_column", "row 1, column BP", "the column is missing")),
        (b'{"data": [{"AGE":1,"BMI":2,"x":4}]}', ("unknown_column", "row 1", 'the model has no column "x"')),
        (b'{"data": []}', ("no_rows", "data", "data holds no rows")),
        (b'{"data": null}', ("wrong_shape", "data", "expected an array of rows, got null")),
        (b'{"dta": []}', ("wrong_shape", "body", 'the object has no "data"')),
        (b"[1]", ("wrong_shape", "body", 'expected {"data": [[…], …]}, got an array')),
        (b"", ("not_json", "", "the body is empty")),
        (b'{"data": [[1,2,"\xff"]]}', ("not_utf8", "byte 16", "the body is not UTF-8")),
        (b'{"data": [[1,2,3],[1e400,2,3]]}', ("out_of_range", "row 2, column AGE", TOO_LARGE)),
        (b'{"data": [[1,-1e999,3]]}', ("out_of_range", "row 1, column BMI", TOO_LARGE)),
        (b'{"data": [[1,2,9' + b"0" * 5000 + b"]]}", ("out_of_range", "row 1, column BP", TOO_LARGE)),
        (b'{"data": [["x",2,1e400]]}', ("wrong_type", "row 1, column AGE", 'expected a number, got "x"')),
        (b'{"x": "\xff", "data": [[1,2,3]]}', ("not_utf8", "byte 7", "the body is not UTF-8")),
    ],
)
def test_what_is_wrong_is_named_with_its_place(body: bytes, expected: tuple[str, str, str]) -> None:
    """Status 400, a code, the row counted from 1, the column, and the value."""
    assert (400, *expected) == problem(body)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "nan", "inf", "-inf"])
def test_words_for_numbers_that_json_has_not_get_a_hint(word: str) -> None:
    """Where they stand for a number; not where the text has them by chance."""
    hint = "JSON has no NaN or infinity, send null for a missing value"
    assert hint in problem(b'{"data": [[1,2,' + word.encode() + b"]]}")[3]
    assert hint not in problem(b'{"info": "' + word.encode() + b'", "data": [[1,2,info]]}')[3]
    assert hint not in problem(b'{"data": [["' + word.encode() + b'",2,3]]')[3]


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [[1,2,NaN]]}',
        b'{"data": [[1,2,Infinity]]}',
        b'{"data": [[1,2,1e400]]}',
        b'{"data": [[1,2,1' + b"0" * 400 + b"]]}",
        b'{"data": [[1,2,1' + b"0" * 5000 + b"]]}",
        b'{"data": [[1,2,3]',
        b'{"data": [[1,2,3]]} x',
        b'{"data": ' + b"[" * 100_000,
        b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "data": [[1,2,3]]}',
        b'{"x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b', "data": [[1,2,3]]}',
        b"\xef\xbb\xbf{}",
        b'{"data": [["\\ud800",2,3]]}',
    ],
)
def test_no_json_no_number_and_no_end_are_refused(body: bytes) -> None:
    """NaN, infinity, numbers beyond double, truncated and bottomless bodies: always 400."""
    assert problem(body)[0] == 400


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("single", 1e39, "out_of_range"),
        ("count", 2**63, "out_of_range"),
        ("count", -(2**63) - 1, "out_of_range"),
        ("count", 1.5, "wrong_type"),
        ("small", 2**31, "out_of_range"),
        ("flag", 1, "wrong_type"),
        ("flag", None, "wrong_type"),
        ("word", 1, "wrong_type"),
    ],
)
def test_the_limits_of_each_type(column: str, value: Any, code: str) -> None:
    """A value that its type cannot hold is refused with the column's name."""
    row = {"number": 1, "count": 2, "flag": False, column: value}
    status, actual, place, _ = problem(json.dumps({"data": [row]}).encode(), MIXED)
    assert (400, code, f"row 1, column {column}") == (status, actual, place)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    """2.0 is a whole number in JSON Schema, and here."""
    assert read([[1, 0.5, 2.0, 7, True, ""]], MIXED) == [[1, 0.5, 2, 7, True, ""]]


def test_too_many_rows() -> None:
    """Also when a row beyond the limit is wrong."""
    assert problem(json.dumps({"data": [[1, 2, 3]] * 101}).encode())[0] == 413
    assert problem(json.dumps({"data": [[1, 2, "x"]] * 101}).encode())[0] == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [' + b"[]," * 5_000_000 + b"[]]}",
        b'{"data": [' + b'{"":1},' * 2_000_000 + b"{}]}",
        b'{"data": [' + b"1.5," * 4_000_000 + b"1]}",
        b'{"data": [[' + b'"ab",' * 3_000_000 + b'"ab"]]}',
        b'{"x": [' + b"[]," * 5_000_000 + b'[]], "data": [[1,2,3]]}',
        b'{"data": [[1,2,"\\"' + b"[" * 3_000_000 + b'"],' + b"[]," * 3_000_000 + b"[]]}",
    ],
    ids=range(6),
)
def test_a_body_of_many_small_values_is_refused_before_they_are_made(body: bytes) -> None:
    """Fifteen megabytes that would be hundreds as values cost little more than themselves."""
    one = reader(max_rows=100_000)
    tracemalloc.start()
    with pytest.raises(RequestError) as caught:
        one.read(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (caught.value.status, caught.value.code) == (413, "too_many_rows")
    assert peak < 20_000_000


def test_brackets_and_commas_in_text_are_no_rows() -> None:
    """However many a string holds, escaped quotes among them."""
    text = '[{,"\\[' * 10_000
    row = {"number": 1, "count": 2, "flag": False, "word": text}
    assert [[1, 0.5, 2, 7, False, text]] == read([row], MIXED)
    assert [[1, 0.5, 2, 7, False, text]] * 2 == read([row, [1, None, 2.0, None, False, text]], MIXED)


@pytest.mark.parametrize(
    "signature",
    [
        {"inputs": [], "outputs": LINEAR["outputs"]},
        {"inputs": [{"name": "x", "type": "complex"}], "outputs": LINEAR["outputs"]},
        {"inputs": [{"name": "x", "type": "long", "required": False}], "outputs": LINEAR["outputs"]},
        {"inputs": [{"name": "x", "type": "long", "required": False, "default": "a"}], "outputs": LINEAR["outputs"]},
        {"inputs": [*LINEAR["inputs"], *LINEAR["inputs"]], "outputs": LINEAR["outputs"]},
        {"inputs": LINEAR["inputs"]},
        [],
    ],
)
def test_a_signature_that_cannot_be_kept_is_refused(signature: Any) -> None:
    """Before anything is served."""
    with pytest.raises(PackageError):
        reader(signature)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just(2.0),
    st.integers(-5, 5),
    st.lists(st.integers(), max_size=2),
)
TYPICAL = st.tuples(
    st.floats(allow_nan=False),
    st.one_of(st.none(), st.floats(width=32)),
    st.integers(),
    st.one_of(st.none(), st.integers()),
    st.booleans(),
    st.one_of(st.none(), st.text(max_size=5)),
)
NAMES = [column["name"] for column in MIXED["inputs"]]
ROWS = st.one_of(
    TYPICAL.map(list),
    TYPICAL.map(lambda row: dict(zip(NAMES, row, strict=True))),
    st.dictionaries(st.sampled_from([*NAMES, "other"]), VALUES),
    st.lists(VALUES, min_size=5, max_size=7),
    VALUES,
)


class CarefulReader(RowReader):
    """Reads value by value only."""

    def _read_fast(self, body: bytes) -> None:
        return None


def outcome(one: RowReader, body: bytes) -> Any:
    try:
        return [[(type(value) is bool, value if value == value else "nan") for value in row] for row in one.read(body)]
    except RequestError as error:
        return error.status, error.code, error.place, error.message


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(ROWS, max_size=4))
def test_the_fast_reading_accepts_and_answers_what_the_careful_one_does(rows: list[Any]) -> None:
    """The typed decoder is an optimisation: nobody can tell which of the two has read a request."""
    signature = Signature.from_json(json.dumps(MIXED).encode(), "")
    for ascii_only in (True, False):
        body = json.dumps({"data": rows}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        assert outcome(CarefulReader(signature, 3), body) == outcome(RowReader(signature, 3), body)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(alphabet='{}[]":,datn ul0123456789.eE+-\\').map(str.encode)))
def test_no_bytes_do_anything_but_answer_or_be_refused(body: bytes) -> None:
    """Whatever comes, the reader returns rows or raises RequestError with 400 or 413."""
    result = outcome(reader(), body)
    assert isinstance(result, list) or result[0] in (400, 413)
