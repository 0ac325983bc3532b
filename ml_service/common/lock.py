"""One deployment at a time on one machine, by a lock file. Across machines see ``ml_service/azure/lease.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ml_service.errors import UnavailableError
from ml_service.ports import Progress

_MARGIN = 60.0
"""Seconds to wait for another deployment, on top of the longest that it may take to start and to drain."""


@contextmanager
def deployment_lock(file: Path, progress: Progress, *, longest_deployment: float) -> Iterator[None]:
    """Hold the lock for as long as the block lasts. The system frees it when the process that holds it is killed.

    Args:
        file: the lock file, in a directory that exists.
        longest_deployment: seconds that the deployment that holds the lock may still need.

    Raises:
        UnavailableError: another deployment holds it for longer than that.
        OSError: the file cannot be made.
    """
    # Imported here: a task that does not deploy does not need it.
    import filelock

    lock = filelock.FileLock(file)
    try:
        with suppress(filelock.Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            progress("another deployment is running; waiting for its end")
            lock.acquire(timeout=longest_deployment + _MARGIN)
    except filelock.Timeout:
        raise UnavailableError(
            "another deployment is still running",
            where=str(file),
            next_step="wait for its end, and run the command again",
        ) from None
    try:
        yield
    finally:
        lock.release()
