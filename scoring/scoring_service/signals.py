"""Signals as something to wait for: bytes on a pipe. ``sigtimedwait`` would do the same, and macOS does not have it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection


class SignalPipe:
    """Collects the signals ``numbers`` of this process, which no longer interrupt it.

    Python writes the number of each signal that arrives to the pipe, from within the system's own signal handler, so
    that none is lost between two calls of ``wait``.
    """

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        self._numbers = numbers
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def wait(self, seconds: float) -> set[int]:
        """Return the signals that have arrived, after at most ``seconds`` when there are none."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return set(os.read(self._read, 4096)) if ready else set()

    def fork(self) -> int:
        """Fork. The child gets the system's own handling of the signals, also of those that arrive in between."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            os.close(self._read)
            os.close(self._write)
            for number in self._numbers:
                signal.signal(number, signal.SIG_DFL)
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        return pid


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing: the number on the pipe is what counts."""
