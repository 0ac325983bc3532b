"""How long scoring takes, learnt from the bodies that were scored; it decides between the event loop and the thread."""

from __future__ import annotations

INLINE_SECONDS = 0.002
"""Requests expected to take less are answered in the event loop: a thread would cost them more than it saves others.
The loop looks at its sockets again after as long."""

_LEAST_BYTES = 512
"""Smaller bodies cost as much as this one."""

_SLOW_IN_A_ROW = 5


class Pace:
    """Seconds a byte. Until something is known, every request is taken for a long one."""

    def __init__(self) -> None:
        self.seconds_per_byte = float("inf")
        self._slow = 0

    def is_short(self, size: int) -> bool:
        """Whether a body of ``size`` bytes should be answered in the event loop."""
        return self.seconds_per_byte * max(size, _LEAST_BYTES) < INLINE_SECONDS

    def saw_in_loop(self, size: int, seconds: float) -> None:
        """Learn from the clock on the wall. On a busy machine one request may seem slow that only had to wait for the
        processor: only several in a row are believed."""
        seen = seconds / max(size, _LEAST_BYTES)
        if seen < 4 * self.seconds_per_byte:
            self._slow = 0
            self.seconds_per_byte += 0.01 * (seen - self.seconds_per_byte)
            return
        self._slow += 1
        if self._slow >= _SLOW_IN_A_ROW:
            self._slow = 0
            self.seconds_per_byte = seen

    def saw_in_thread(self, size: int, seconds: float) -> None:
        """Learn from the thread's own processor time, which waiting does not distort."""
        seen = seconds / max(size, _LEAST_BYTES)
        known = self.seconds_per_byte
        self.seconds_per_byte = seen if known == float("inf") else known + 0.2 * (seen - known)
