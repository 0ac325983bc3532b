"""The log: one JSON object a line on standard output, written without ever waiting for whoever reads it."""

from __future__ import annotations

import io
import json
import os
import select
import time
from collections.abc import Callable
from typing import Any

from scoring_service.errors import plain

_CHUNK = 4096
"""What a pipe that polls as writable takes without blocking, and in one piece (PIPE_BUF)."""

_MOST_KEPT = 1 << 20
"""Bytes kept for a reader that has fallen behind; then lines are dropped, and counted."""

_LONGEST_OUTPUT = 500
"""Characters of a printed line: escaped six times as long, a log line still fits a chunk."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Journal:
    """Collects lines and writes them in batches to a file descriptor.

    Outside text passes through ``errors.plain``: it can neither break a line nor form a log command. ``dropped`` is
    called with the number of lines that were given up because nobody read.
    """

    def __init__(self, descriptor: int, dropped: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._dropped = dropped
        self._lines: list[bytes] = []
        self._size = 0
        self._blocked = False
        self._second = -1
        self._prefix = b""

    @property
    def pending(self) -> int:
        """Bytes that wait to be written."""
        return self._size

    def line(self, rest: bytes) -> None:
        """Take a line ``{"time":…`` of which ``rest`` is what follows the time, newline included."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(second)).encode()
        if self._size >= _MOST_KEPT:
            self._dropped(1)
            return
        entry = b"%b%03dZ%b" % (self._prefix, (now - second) * 1000, rest)
        self._lines.append(entry)
        self._size += len(entry)
        if self._size >= _CHUNK and not self._blocked:
            self.flush()

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Take a line of its own kind; text in ``fields`` may come from anywhere."""
        safe = {name: plain(value) if isinstance(value, str) else value for name, value in fields.items()}
        self.line(b'",' + _encode({"level": level, "event": event, **safe})[1:].encode() + b"\n")

    def flush(self) -> None:
        """Write what can be written now; what cannot waits for the next call."""
        lines, self._lines, self._size = self._lines, [], 0
        self._blocked = False
        start = 0
        while start < len(lines) and not self._blocked:
            end, size = start + 1, len(lines[start])
            while end < len(lines) and size + len(lines[end]) <= _CHUNK:
                size += len(lines[end])
                end += 1
            if self._write(b"".join(lines[start:end])):
                start = end
            else:
                self._blocked = True
        self._lines = lines[start:] + self._lines
        self._size = sum(map(len, self._lines))

    def _write(self, data: bytes) -> bool:
        if not self._poll.poll(0):
            return False
        try:
            os.write(self._descriptor, data)
        except BlockingIOError:
            return False
        except OSError:
            self._dropped(data.count(b"\n"))  # nobody will ever read it: the reader is gone
        return True


class JournalStream(io.TextIOBase):
    """Stands in for ``sys.stdout``: what a model's script prints becomes lines of the log, through ``emit``."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._rest = ""

    def writable(self) -> bool:
        """It can be written to."""
        return True

    def write(self, text: str) -> int:
        """Log each line of ``text``, cut to 500 characters."""
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[:_LONGEST_OUTPUT]
        for line in lines:
            if line.strip():
                self._emit(line[:_LONGEST_OUTPUT])
        return len(text)
