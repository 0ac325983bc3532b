"""Estimate how long scoring takes, from the bodies scored so far. It decides between the event loop and the thread."""

from __future__ import annotations

INLINE_SECONDS = 0.002
"""Requests expected to take less are scored in the event loop: a thread would cost them more than it saves others.
A batch of them ends after as long, so that the loop can poll its sockets."""

_MIN_BYTES = 512
"""Smaller bodies take as long as one of this size."""

_SLOW_IN_A_ROW = 5


class LatencyEstimate:
    """Seconds per byte of body. Before the first sample it is infinite: every request counts as long."""

    def __init__(self) -> None:
        self.seconds_per_byte = float("inf")
        self._slow = 0

    def is_short(self, size: int) -> bool:
        """Return whether a body of ``size`` bytes should be scored in the event loop."""
        return self.seconds_per_byte * max(size, _MIN_BYTES) < INLINE_SECONDS

    def add_loop_sample(self, size: int, seconds: float) -> None:
        """Learn from ``seconds`` of wall-clock time in the event loop.

        On a busy machine a single sample may be slow only because the process had to wait for a processor. A sample
        four times the estimate or more therefore counts only if it is the fifth in a row.
        """
        sample = seconds / max(size, _MIN_BYTES)
        if sample < 4 * self.seconds_per_byte:
            self._slow = 0
            self.seconds_per_byte += 0.01 * (sample - self.seconds_per_byte)
            return
        self._slow += 1
        if self._slow >= _SLOW_IN_A_ROW:
            self._slow = 0
            self.seconds_per_byte = sample

    def add_thread_sample(self, size: int, seconds: float) -> None:
        """Learn from ``seconds`` of the thread's processor time, which does not include waiting."""
        sample = seconds / max(size, _MIN_BYTES)
        estimate = self.seconds_per_byte
        self.seconds_per_byte = sample if estimate == float("inf") else estimate + 0.2 * (sample - estimate)
