"""The one way in which tests wait for something that another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Return as soon as ``condition()`` is true. The timeout is generous because the machine may be busy.

    The pause between two looks grows from 5 to 100 ms, so that what is quick is noticed quickly and what is slow costs
    few looks.

    Raises:
        AssertionError: ``what`` did not come true within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = 0.005
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
