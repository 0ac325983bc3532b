"""The reader: which files are the table that the model expects, and what is said of those that are not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from diabetes_regression.data import COLUMNS, Problem, load, read_table, row_hash, split
from diabetes_regression.errors import DataError

DATA = Path(__file__).parents[3] / "data" / "diabetes.csv"
HEADER = ",".join(COLUMNS)


def lines() -> list[str]:
    return DATA.read_text().splitlines()


def write(tmp_path: Path, *rows: str, end: str = "\n") -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes((end.join(rows) + end).encode())
    return path


def with_field(row: int, column: str, value: str) -> list[str]:
    """The real file with one field replaced; ``row`` is the line in the file."""
    changed = lines()
    fields = changed[row - 1].split(",")
    fields[COLUMNS.index(column)] = value
    changed[row - 1] = ",".join(fields)
    return changed


def test_the_file_holds_the_very_numbers_of_scikit_learn() -> None:
    """442 rows, equal to load_diabetes() in the last bit."""
    bunch = load_diabetes()
    data = load(DATA)
    assert np.array_equal(data.features, bunch.data)
    assert np.array_equal(data.target, bunch.target)


@pytest.mark.parametrize("rows", [30, 89, 430, 442, 1001])
@pytest.mark.parametrize(("test_size", "seed"), [(0.2, 0), (0.33, 7), (0.5, 2**32 - 1)])
def test_the_split_is_that_of_scikit_learn(rows: int, test_size: float, seed: int) -> None:
    """The same rows in the same order, for any number of rows, share and seed."""
    expected = train_test_split(np.arange(rows), test_size=test_size, random_state=seed)
    assert [part.tolist() for part in split(rows, test_size, seed)] == [part.tolist() for part in expected]


def test_a_hash_depends_on_the_values_only(tmp_path: Path) -> None:
    """Neither the writing of a number, nor the order of columns, nor the place in the file changes a row's hash."""
    header, *body = lines()[:41]
    turned = [",".join(reversed(line.split(","))) for line in [header, *reversed(body)]]
    padded = [row + "00" for row in body]
    original = load(write(tmp_path, header, *body)).hashes
    assert load(write(tmp_path, *turned)).hashes == list(reversed(original))
    assert load(write(tmp_path, header, *padded)).hashes == original
    assert len(set(original)) == 40


def test_zero_and_minus_zero_hash_alike() -> None:
    """They are equal, so a row that holds one is the row that holds the other."""
    assert row_hash(np.full(11, -0.0)) == row_hash(np.zeros(11))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path: Path, end: str, mark: bytes) -> None:
    """What Windows writes is read like what Linux writes."""
    path = write(tmp_path, *lines(), end=end)
    path.write_bytes(mark + path.read_bytes())
    assert load(path).hashes == load(DATA).hashes


def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    """An editor's extra line ends harm nobody."""
    assert len(load(write(tmp_path, *lines(), "", ""))) == 442


def without(column: str) -> list[str]:
    position = COLUMNS.index(column)
    return [",".join(field for n, field in enumerate(line.split(",")) if n != position) for line in lines()]


WHOLE_FILE = {
    "empty": (b"", "", "is empty"),
    "blank": (b" \n\n", "", "is empty"),
    "binary": (b"\x89PNG\r\n\0\0\0", "", "is binary, not a CSV text"),
    "latin-1": (b"AGE\nJos\xe9\n", ", row 2", "is not UTF-8 text: it is binary or in another encoding"),
    "header only": (HEADER.encode() + b"\n", "", "has a header and no rows"),
    "no line end": (HEADER.encode() + b"\n1,2,3", ", row 2", "has no line end: the file seems cut off"),
    "semicolons": (HEADER.replace(",", ";").encode() + b"\n", ", row 1", "columns are separated by semicolons"),
    "tabs": (HEADER.replace(",", "\t").encode() + b"\n", ", row 1", "columns are separated by tabs"),
    "open quote": (HEADER.encode() + b'\n"1,2\n', ", row 2", "is not valid CSV (unexpected end of data)"),
    "repeated column": (b"AGE,SEX,AGE\n1,2,3\n", ", row 1, column AGE", "the column appears twice"),
    "one other column": (b"hello\nworld\n", ", row 1, column AGE", "the column is missing"),
    "unknown column": (
        HEADER.encode() + b",EXTRA\n",
        ", row 1, column EXTRA",
        f"the column is unknown; the columns are {', '.join(COLUMNS)}",
    ),
    "misspelt column": (
        HEADER.replace("BMI", "bmi").encode() + b"\n",
        ", row 1, column BMI",
        "the column is missing (there is 'bmi' instead)",
    ),
}


@pytest.mark.parametrize("case", WHOLE_FILE)
def test_what_is_no_table_is_refused_with_the_place(tmp_path: Path, case: str) -> None:
    """The message names file, row and column as far as they are known, and why."""
    content, place, what = WHOLE_FILE[case]
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        load(path)
    assert (refusal.value.where, refusal.value.what) == (f"{path}{place}", what)
    assert refusal.value.next_step


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """Every row lacks it, but one message is enough."""
    with pytest.raises(DataError, match="row 1, column S3: the column is missing; next: "):
        load(write(tmp_path, *without("S3")))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tall", "'tall' is not a number"),
        ("1_0", "'1_0' is not a number"),
        ("١", "'١' is not a number"),
        ("", "the value is missing"),
        ("  ", "the value is missing"),
        ("NaN", "the value is missing (NaN)"),
        ("inf", "the value is infinite"),
        ("-1e999", "the value is infinite"),
    ],
)
def test_a_field_that_is_no_number_is_named(tmp_path: Path, value: str, message: str) -> None:
    """File, line in the file and column."""
    path = write(tmp_path, *with_field(17, "BP", value))
    assert read_table(path).problems == [Problem(str(path), 17, "BP", message)]
    with pytest.raises(DataError) as refusal:
        load(path)
    assert refusal.value.where == f"{path}, row 17, column BP"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0.1,0.2", "the row has 2 fields instead of 11: is it cut off?"),
        (",".join(["0.1"] * 12), "the row has 12 fields instead of 11: is it cut off?"),
        ("", "the row is blank"),
    ],
)
def test_a_row_of_another_length_is_named(tmp_path: Path, row: str, message: str) -> None:
    """Its fields cannot be told apart, so the whole row is the problem, and its values are unknown."""
    path = write(tmp_path, *lines()[:40], row, *lines()[40:])
    table = read_table(path)
    assert table.problems == [Problem(str(path), 41, None, message)]
    assert all(math.isnan(value) for value in table.values[39])


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Even in the middle of the last number, which would still be a number."""
    content = DATA.read_bytes()
    path = tmp_path / "rows.csv"
    for length in (10, 40, len(content) // 2, len(content) - 20, *range(len(content) - 7, len(content))):
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            load(path)


def test_several_problems_are_counted(tmp_path: Path) -> None:
    """The first is told, and how many more there are."""
    changed = with_field(17, "BP", "x")
    changed[30] = "1,2"
    with pytest.raises(DataError, match=r"row 17, column BP: 'x' is not a number \(and 1 more\)"):
        load(write(tmp_path, *changed))


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    """A handful of rows can be read but not split."""
    with pytest.raises(DataError, match="29 rows are too few"):
        load(write(tmp_path, *lines()[:30]))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """With its name, and the option that names another."""
    with pytest.raises(DataError, match=r"none\.csv: cannot be read \(No such file or directory\); next: .*--data"):
        load(tmp_path / "none.csv")


@pytest.mark.slow
@given(content=st.binary(max_size=200))
@example(content=b"\x1b[2J\n")
@example(content=b"\xef\xbb\xbf")
@example(content=b"\r")
@settings(max_examples=200, deadline=None)
def test_no_file_is_answered_with_a_traceback(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the bytes: one printable line."""
    path = tmp_path_factory.mktemp("fuzz") / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        load(path)
    assert str(refusal.value).isprintable()


@pytest.mark.slow
@given(
    position=st.integers(0, 95_131),
    inserted=st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([b",", b"\n", b'"', b"e9", b"nan"])),
)
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_read_or_refused(
    position: int, inserted: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A few bytes changed anywhere: 442 finite rows, or one printable line."""
    content = DATA.read_bytes()
    path = tmp_path_factory.mktemp("damage") / "rows.csv"
    path.write_bytes(content[:position] + inserted + content[slice(position + len(inserted), None)])
    try:
        data = load(path)
    except DataError as error:
        assert str(error).isprintable()
    else:
        assert len(data) == 442
        assert np.isfinite(data.features).all() and np.isfinite(data.target).all()
