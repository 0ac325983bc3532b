"""Wait until something becomes true, with a line of progress now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

PROGRESS_INTERVAL = 5.0
"""Seconds between two lines of progress."""


def wait_until(condition: Callable[[], bool], *, timeout: float, poll: float, report: Callable[[float], None]) -> bool:
    """Wait until ``condition`` returns True; return False when it has not after ``timeout`` seconds.

    Args:
        condition: it may raise to end the wait, such as when a candidate's process has ended.
        poll: seconds between two calls of ``condition``.
        report: called every PROGRESS_INTERVAL seconds with the seconds waited so far.
    """
    started = reported = time.monotonic()
    while (now := time.monotonic()) - started < timeout:
        if condition():
            return True
        if now - reported > PROGRESS_INTERVAL:
            reported = now
            report(now - started)
        time.sleep(poll)
    return False
