"""The data: its columns, a reader that names what it cannot use, the split, and the hash of a row.

Only numpy is imported, because ``train`` and ``evaluate`` wait for whatever is imported here; the checks that need
pandas are in ``validate``.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diabetes_regression.errors import DataError
from diabetes_regression.files import read_bytes, sha256

Values = NDArray[np.float64]

FEATURES = ("AGE", "SEX", "BMI", "BP", "S1", "S2", "S3", "S4", "S5", "S6")
TARGET = "Y"
COLUMNS = (*FEATURES, TARGET)
MIN_ROWS = 30
"""Fewer rows than this cannot be split into a part to train on and a part that says anything about the model."""

CORRECT = "correct the file, or restore it with git checkout, and run again"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a data file. ``row`` is the line in the file, header 1; None for the whole file."""

    file: str
    row: int | None
    column: str | None
    message: str

    @property
    def where(self) -> str:
        """The place in words: file, row and column as far as they are known."""
        parts = [self.file]
        if self.row is not None:
            parts.append(f"row {self.row}")
        if self.column is not None:
            parts.append(f"column {self.column}")
        return ", ".join(parts)


class RejectedDataError(DataError):
    """A data file with problems: the message gives the first of them, and how many more there are."""

    def __init__(self, problems: Sequence[Problem], next_step: str = CORRECT) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0].where, problems[0].message + more, next_step)
        self.problems = problems


def _rejected(
    file: str, message: str, *, row: int | None = None, column: str | None = None, next_step: str = CORRECT
) -> RejectedDataError:
    return RejectedDataError([Problem(file, row, column, message)], next_step)


@dataclass(frozen=True)
class Table:
    """A file as read. ``values`` is ``[rows, 11]`` in the order of ``COLUMNS``, NaN where a field was no number.

    ``lines`` is ``[rows]``: the line of each row in the file, from 1.
    """

    file: str
    sha256: str
    values: Values
    lines: Sequence[int]
    problems: Sequence[Problem]


@dataclass(frozen=True)
class Dataset:
    """Rows that a model can use: ``features`` ``[rows, 10]``, ``target`` ``[rows]``, ``hashes`` ``[rows]``."""

    features: Values
    target: Values
    hashes: Sequence[str]
    sha256: str

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[np.int_]) -> Dataset:
        """Return the given rows, in the given order."""
        return Dataset(self.features[rows], self.target[rows], [self.hashes[row] for row in rows], self.sha256)


def load(path: Path) -> Dataset:
    """Return the rows of ``path``, for the steps that need every one of them to be usable.

    Raises:
        DataError: the file is not the table that ``COLUMNS`` describes; the message names the first problem.
    """
    table = read_table(path)
    if table.problems:
        raise RejectedDataError(table.problems)
    if len(table.values) < MIN_ROWS:
        few = f"{len(table.values)} rows are too few to train and to hold out"
        raise _rejected(table.file, few, next_step=f"give at least {MIN_ROWS} rows")
    hashes = [row_hash(row) for row in table.values]
    return Dataset(np.ascontiguousarray(table.values[:, :-1]), table.values[:, -1].copy(), hashes, table.sha256)


def row_hash(row: Values) -> str:
    """Return the SHA-256 of a row's values (``[11]``, order of ``COLUMNS``), however the numbers are written."""
    # Adding zero turns -0.0 into 0.0; the byte order is fixed so that every machine gets the same hash.
    return hashlib.sha256((row + 0.0).astype("<f8").tobytes()).hexdigest()


def split(rows: int, test_size: float, random_state: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Return the row numbers ``(to train on, held out)``, as scikit-learn's ``train_test_split`` chooses them.

    It is done here, in its two lines, because ``evaluate`` must find the same rows without the seconds that importing
    scikit-learn takes; a test compares the two.
    """
    held_out = math.ceil(test_size * rows)
    # RandomState's stream never changes between versions of numpy (NEP 19), so old splits can be found again.
    order = np.random.RandomState(random_state).permutation(rows)
    return order[held_out:], order[:held_out]


def read_table(path: Path) -> Table:
    """Read ``path`` as CSV and note every field that is no finite number.

    Raises:
        DataError: there is no table in it at all: unreadable, empty, binary, cut off, or with another header.
    """
    content = read_bytes(path, "pass the CSV file with --data")
    lines = _lines(str(path), _text(str(path), content))
    order = _column_order(str(path), lines[0][1])
    body = _without_blank_end(lines[1:])
    if not body:
        raise _rejected(str(path), "has a header and no rows")
    problems: list[Problem] = []
    values = np.array([_row(str(path), line, fields, order, problems) for line, fields in body], dtype=np.float64)
    return Table(str(path), sha256(content), values, [line for line, _ in body], problems)


def _text(file: str, content: bytes) -> str:
    if not content.strip():
        raise _rejected(file, "is empty")
    if b"\0" in content:
        raise _rejected(file, "is binary, not a CSV text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _rejected(file, "is not UTF-8 text: it is binary or in another encoding", row=line) from error
    if not text.endswith(("\n", "\r")):
        cut = "has no line end: the file seems cut off"
        raise _rejected(file, cut, row=len(text.splitlines()), next_step="restore it, or end its last line")
    return text


def _lines(file: str, text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines = []
    try:
        for fields in reader:
            lines.append((reader.line_num, fields))
    except csv.Error as error:
        raise _rejected(file, f"is not valid CSV ({error})", row=reader.line_num) from error
    return lines


def _without_blank_end(lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    while lines and not lines[-1][1]:
        lines = lines[:-1]
    return lines


def _column_order(file: str, header: list[str]) -> list[int]:
    """Return where each of ``COLUMNS`` stands in the file: in any order, but each of them once and no other."""
    if len(header) == 1:
        _refuse_delimiter(file, header[0])
    for name in header:
        if header.count(name) > 1:
            raise _rejected(file, "the column appears twice", row=1, column=name)
    for name in COLUMNS:
        if name not in header:
            raise _rejected(file, "the column is missing" + _instead(name, header), row=1, column=name)
    for name in header:
        if name not in COLUMNS:
            known = ", ".join(COLUMNS)
            raise _rejected(file, f"the column is unknown; the columns are {known}", row=1, column=name[:40])
    return [header.index(name) for name in COLUMNS]


def _refuse_delimiter(file: str, header: str) -> None:
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if delimiter in header:
            raise _rejected(file, f"columns are separated by {name}", row=1, next_step="separate them by commas")


def _instead(name: str, header: list[str]) -> str:
    unknown = {other.strip().upper(): other for other in header if other not in COLUMNS}
    close = difflib.get_close_matches(name, unknown, n=1)
    return f" (there is {unknown[close[0]][:40]!r} instead)" if close else ""


def _row(file: str, line: int, fields: list[str], order: list[int], problems: list[Problem]) -> list[float]:
    if len(fields) != len(COLUMNS):
        what = "is blank" if not fields else f"has {len(fields)} fields instead of {len(COLUMNS)}"
        problems.append(Problem(file, line, None, f"the row {what}" + (": is it cut off?" if fields else "")))
        return [math.nan] * len(COLUMNS)
    row = []
    for name, position in zip(COLUMNS, order, strict=True):
        number, complaint = _number(fields[position])
        if complaint:
            problems.append(Problem(file, line, name, complaint))
        row.append(number)
    return row


def _number(text: str) -> tuple[float, str]:
    """Return the number that ``text`` writes and an empty complaint, or NaN and why it is none."""
    stripped = text.strip()
    if not stripped:
        return math.nan, "the value is missing"
    try:
        # float() would also take "1_000" and the digits of other scripts, which no CSV writer means as numbers.
        number = float(stripped) if stripped.isascii() and "_" not in stripped else None
    except ValueError:
        number = None
    if number is None:
        return math.nan, f"{stripped[:40]!r} is not a number"
    if math.isnan(number):
        return math.nan, "the value is missing (NaN)"
    if math.isinf(number):
        return math.nan, "the value is infinite"
    return number, ""
