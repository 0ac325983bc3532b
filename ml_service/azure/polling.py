"""Wait for a long-running operation of Azure, with a line of progress now and then."""

from __future__ import annotations

import time
from typing import Any

from ml_service.ports import Progress

PROGRESS_INTERVAL = 10.0
"""Seconds between two lines of progress."""


def wait_for(poller: Any, operation: str, progress: Progress) -> None:
    """Wait until ``poller``, which a ``begin_`` method of an SDK returned, has ended; ``operation`` is for the person.

    Raises:
        azure.core.exceptions.AzureError: the operation failed; see ``errors.translated``.
    """
    started = reported = time.monotonic()
    while not poller.done():
        poller.wait(1)
        if time.monotonic() - reported > PROGRESS_INTERVAL:
            reported = time.monotonic()
            progress(f"{operation} ({reported - started:.0f} s)")
    poller.result()
