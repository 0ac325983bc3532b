"""The two keys of an endpoint, in a file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_service.errors import IntegrityError, MlopsError
from ml_service.ports import Keys


def new_keys() -> dict[str, str]:
    """Generate two keys of 256 bits, as ``{"primary": ..., "secondary": ...}``."""
    return {"primary": secrets.token_urlsafe(32), "secondary": secrets.token_urlsafe(32)}


def make(path: Path, mode: int = 0o600) -> None:
    """Write two new keys, unless the file exists: keys outlive deployments. Only this user may enter its folder."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            json.dump(new_keys(), file)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, next_step: str) -> Keys:
    """Return the keys in ``path``; ``next_step`` is what the error advises.

    Raises:
        IntegrityError: the file does not hold two keys.
    """
    try:
        return Keys(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        raise IntegrityError("does not hold two keys", where=str(path), next_step=next_step) from None


def masking(keys: Callable[[], Keys]) -> Callable[[str], str]:
    """Return a function that hides both keys in a log line; without keys it changes nothing."""
    try:
        pair = keys()
    except MlopsError:
        return lambda line: line
    return hiding([pair.primary, pair.secondary])


def hiding(words: Sequence[str]) -> Callable[[str], str]:
    """Return a function that hides these words in a log line."""

    def hide(line: str) -> str:
        for word in words:
            line = line.replace(word, "***")
        return line

    return hide
