"""The log: one JSON object per line on standard output. Writing it never blocks, even if nobody reads it."""

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
"""Bytes that a pipe takes without blocking and in one piece once it polls as writable (PIPE_BUF)."""

_MAX_BUFFERED = 1 << 20
"""Bytes buffered for a slow reader. Beyond it lines are dropped, and counted."""

_MAX_OUTPUT = 500
"""Characters of a printed line. Escaping makes it six times as long, and it still fits a chunk."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


class JsonLog:
    """Buffer lines and write them in batches to a file descriptor.

    Outside text goes through ``errors.plain``: it can neither break a line nor form a log command. ``on_dropped`` is
    called with the number of lines that were discarded because nobody read them.
    """

    def __init__(self, descriptor: int, on_dropped: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._on_dropped = on_dropped
        self._lines: list[bytes] = []
        self._size = 0
        self._blocked = False
        self._second = -1
        self._prefix = b""

    def line(self, rest: bytes) -> None:
        """Add a line: ``{"time":"…`` with the time, followed by ``rest``, which ends with the newline."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(second)).encode()
        if self._size >= _MAX_BUFFERED:
            self._on_dropped(1)
            return
        entry = b"%b%03dZ%b" % (self._prefix, (now - second) * 1000, rest)
        self._lines.append(entry)
        self._size += len(entry)
        if self._size >= _CHUNK and not self._blocked:
            self.flush()

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Add a line with ``fields``, whose text may come from outside."""
        safe = {name: plain(value) if isinstance(value, str) else value for name, value in fields.items()}
        self.line(b'",' + _encode({"level": level, "event": event, **safe})[1:].encode() + b"\n")

    def flush(self) -> None:
        """Write as many lines as the reader takes now. The rest stays buffered for the next call."""
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
        """Write a chunk. Return False if the reader does not take it now."""
        if not self._poll.poll(0):
            return False
        try:
            os.write(self._descriptor, data)
        except BlockingIOError:
            return False
        except OSError:
            self._on_dropped(data.count(b"\n"))  # the reader is gone: nobody will ever read it
        return True


class JsonLogStream(io.TextIOBase):
    """Replacement for ``sys.stdout``: each line that a model's script prints goes to ``emit``."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._rest = ""

    def writable(self) -> bool:
        """Return True, as ``print`` expects."""
        return True

    def write(self, text: str) -> int:
        """Emit each whole line of ``text``, cut to 500 characters. An unfinished line waits for its end."""
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[:_MAX_OUTPUT]
        for line in lines:
            if line.strip():
                self._emit(line[:_MAX_OUTPUT])
        return len(text)
