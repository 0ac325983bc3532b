"""Reading and writing whole files: JSON, hashes, and writes that a reader sees complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diabetes_regression.errors import DataError, IntegrityError, StorageError

MANIFEST = "files.json"
"""The SHA-256 of each file of the candidate. ``train`` writes it last: without it a candidate is not complete."""


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` in hex."""
    return hashlib.sha256(content).hexdigest()


def read_bytes(path: Path, next_step: str) -> bytes:
    """Return the content of ``path``.

    Raises:
        DataError: it is missing, a directory, or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror or error})", next_step) from error


def parse_object(content: bytes, where: str, next_step: str) -> dict[str, Any]:
    """``content`` as a JSON object.

    Raises:
        DataError: it is not JSON, not an object, or names something twice.
    """
    try:
        value = json.loads(content, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(where, f"is not valid JSON ({error})", next_step) from error
    if not isinstance(value, dict):
        raise DataError(where, f"holds a JSON {type(value).__name__} instead of an object", next_step)
    return value


def read_object(path: Path, next_step: str) -> dict[str, Any]:
    """Return the JSON object in ``path``; raises DataError as :func:`read_bytes` and :func:`parse_object` do."""
    return parse_object(read_bytes(path, next_step), str(path), next_step)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} appears twice")
    return value


def to_json(value: object) -> bytes:
    """``value`` as JSON with a line end; NaN and infinity, which JSON lacks, raise ValueError."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one move, so that a reader never sees half of it.

    Raises:
        StorageError: the disk is full or the place cannot be written; what stood at ``path`` still stands.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        _forget(unfinished)
        raise _refused(path, error) from error


def remove(path: Path) -> None:
    """Delete the file ``path`` if it is there: an old result must not pass for the new one.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # the error that led here is the one to report


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        str(path),
        f"cannot be written ({error.strerror or error})",
        "free some space or choose another output, and run again",
    )


def write_candidate(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write a candidate's ``files`` (relative path to content) and, last, the manifest of their hashes.

    Files that stand in ``directory`` are replaced one by one. The old manifest goes first, so that a mixture of old and
    new is never taken for a whole candidate.
    """
    remove(directory / MANIFEST)
    for name, content in files.items():
        write(directory / name, content)
    write(directory / MANIFEST, to_json({name: sha256(content) for name, content in sorted(files.items())}))


def verify_candidate(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a candidate, after comparing them with the files.

    Raises:
        DataError: there is no whole candidate.
        IntegrityError: a file was changed, removed or added after ``train`` wrote it.
    """
    manifest = read_object(directory / MANIFEST, "run train again: it did not end, or wrote somewhere else")
    for name, expected in manifest.items():
        _verify(directory / name, expected)
    present = {path.relative_to(directory).as_posix() for path in (directory / "model").rglob("*") if path.is_file()}
    for name in sorted(present - manifest.keys()):
        raise IntegrityError(
            str(directory / name), "was added to the model after training", "remove it, or train again"
        )
    return {name: str(value) for name, value in manifest.items()}


def _verify(path: Path, expected: object) -> None:
    if not path.is_file():
        raise IntegrityError(str(path), "is gone since training", "run train again")
    if sha256(path.read_bytes()) != expected:
        raise IntegrityError(str(path), "was changed after training: its hash differs", "run train again")
