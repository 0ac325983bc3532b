"""One deployment at a time, across machines: what leases have in common, whatever stores them.

The holder writes something new three times within ``duration``. Clocks of two machines may differ, so nobody compares
times: whoever waits watches whether the stored text changes, and a holder that has not written for ``duration`` seconds
of the waiting machine's monotonic clock is taken to be dead. That is how the lease of a process that was killed gets
free.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from ml_service.errors import MlopsError, UnavailableError
from ml_service.ports import Progress

_POLL = 0.5


class StoredLease(Protocol):
    """A lease somewhere. ``where`` names it in messages."""

    where: str

    def read(self) -> str:
        """Return the holder and something that changes with each renewal; empty when the lease is free."""

    def take(self) -> bool:
        """Write ourselves in place of what was read last; return whether the lease is ours."""

    def renew(self) -> None:
        """Write something new, unless another deployment has the lease."""

    def release(self) -> None:
        """Free the lease, unless it is another's."""


@contextmanager
def held(lease: StoredLease, progress: Progress, *, duration: float, timeout: float) -> Iterator[None]:
    """Hold the lease, and renew it meanwhile.

    Raises:
        UnavailableError: another deployment still holds it after ``timeout`` seconds.
    """
    _acquire(lease, progress, duration, timeout)
    stop = threading.Event()
    renewing = threading.Thread(target=_renew_until, args=(lease, stop, duration / 3), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stop.set()
        renewing.join()
        with suppress(MlopsError):  # it expires
            lease.release()


def identity() -> str:
    """Return a name for this process as a holder. Process ids repeat, so it has a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def busy(lease: StoredLease, holder: str) -> UnavailableError:
    """Return the error of a lease that another deployment holds."""
    return UnavailableError(
        f"another deployment is still running: {holder}",
        where=lease.where,
        next_step="wait for its end, and run the command again",
    )


def _acquire(lease: StoredLease, progress: Progress, duration: float, timeout: float) -> None:
    begun = changed = time.monotonic()
    last, is_reported = "", False
    while True:
        text = lease.read()
        if text != last:
            last, changed = text, time.monotonic()
        if not text or time.monotonic() - changed > duration:
            if lease.take():
                return
        elif time.monotonic() - begun > timeout:
            raise busy(lease, text)
        elif not is_reported:
            is_reported = True
            progress("another deployment is running, or was killed a moment ago; waiting for its lease")
        time.sleep(_POLL)


def _renew_until(lease: StoredLease, stop: threading.Event, pause: float) -> None:
    while not stop.wait(pause):
        with suppress(MlopsError):  # the next one may succeed
            lease.renew()
