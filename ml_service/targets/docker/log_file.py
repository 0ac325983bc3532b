"""The docker target's log file: the last log lines of containers, which outlive them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_service.targets.docker.containers import log_lines

_MOST_LINES = 5000


class LogFile:
    """A file of at most 5000 lines. ``mask`` hides keys in a line."""

    def __init__(self, path: Path, mask: Callable[[str], str]) -> None:
        self._path = path
        self._mask = mask

    def lines(self) -> list[str]:
        """Return the lines of the file, oldest first."""
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []

    def add(self, container: Any) -> None:
        """Append the container's log before it is stopped or removed; the oldest lines make room."""
        container.reload()
        lines = [self._mask(line) for line in log_lines(container, _MOST_LINES)]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in (self.lines() + lines)[-_MOST_LINES:])
        self._path.write_text(text, encoding="utf-8")
