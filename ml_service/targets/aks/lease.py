"""One deployment at a time, across machines: a Lease object in the cluster, renewed while it is held.

How it works, with the API server's compare-and-swap as the only thing that is trusted:

- Taking. A missing Lease is created. A free or expired one is replaced under the ``resourceVersion`` that was read, so
  of two takers the server accepts one, and the other one gets a Conflict.
- Holding. ``holderIdentity`` names this process, with a random part, as process ids repeat. A thread writes a new
  ``renewTime`` three times within ``duration``.
- Expiry. Clocks of two machines may differ, so nobody compares ``renewTime`` with the own clock. Whoever waits watches
  whether the object changes: a holder that has not written for ``duration`` seconds of the waiting machine's monotonic
  clock is taken to be dead. That is how the lease of a process that was killed gets free.
- Losing. A holder can be suspended for longer than that and wake up while its successor works. So before each write
  ``Cluster`` calls ``check``. If more than ``duration`` has passed since the last renewal, it renews first and learns
  who holds the lease now. Before that time no successor can have begun: it had to watch for ``duration`` itself.
"""

from __future__ import annotations

import copy
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from ml_service.errors import MlopsError, UnavailableError
from ml_service.ports import Progress
from ml_service.targets.aks.client import Cluster, Conflict, Object

_API, _KIND = "coordination.k8s.io/v1", "Lease"
_POLL = 0.5


@contextmanager
def held(
    cluster: Cluster, name: str, progress: Progress, *, duration: int = 15, timeout: float = 300
) -> Iterator[None]:
    """Hold the lease ``name``. The lease of a holder that was killed is free after ``duration`` seconds.

    When this process loses the lease, ``cluster`` refuses every further change, those that would clean up included.

    Raises:
        UnavailableError: another deployment still holds it after ``timeout`` seconds.
    """
    lease = _Lease(copy.copy(cluster), name, duration)
    lease.acquire(progress, timeout)
    stop = threading.Event()
    renewing = threading.Thread(target=lease.renew_until, args=(stop,), daemon=True)
    renewing.start()
    cluster.before_write = lease.check
    try:
        yield
    finally:
        cluster.before_write = lambda: None
        stop.set()
        renewing.join()
        lease.release()


class _Lease:
    """The lease as one process sees it. Its ``cluster`` is a copy, whose writes are not checked by the lease itself."""

    def __init__(self, cluster: Cluster, name: str, duration: int) -> None:
        self._cluster = cluster
        self._name = name
        self._duration = duration
        self._identity = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._renewed = time.monotonic()
        self._successor = ""
        self._lock = threading.Lock()

    def acquire(self, progress: Progress, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        last_spec, changed = "", time.monotonic()
        while True:
            lease = self._read()
            spec = str(lease["spec"]) if lease else ""
            if spec != last_spec:
                last_spec, changed = spec, time.monotonic()
            if self._is_free(lease) or time.monotonic() - changed > self._duration:
                if self._take(lease):
                    return
            elif time.monotonic() > deadline:
                raise self._busy(lease)
            elif time.monotonic() - changed < 0.1:
                progress("another deployment is running, or was killed a moment ago; waiting for its lease")
            time.sleep(_POLL)

    @staticmethod
    def _is_free(lease: Object | None) -> bool:
        return lease is None or not lease["spec"].get("holderIdentity")

    def _take(self, lease: Object | None) -> bool:
        """Return whether the server gave the lease to us."""
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": self._duration, "renewTime": _now()}
        # Counted from before the request: the server may have taken it at any moment of the call.
        began = time.monotonic()
        try:
            if lease is None:
                metadata = {"name": self._name}
                self._cluster.create({"apiVersion": _API, "kind": _KIND, "metadata": metadata, "spec": spec})
            else:
                self._cluster.replace({**lease, "spec": spec})
        except Conflict:
            return False
        self._renewed = began
        return True

    def renew_until(self, stop: threading.Event) -> None:
        """Renew three times within the duration. A renewal that fails is repeated, by ``check`` at the latest."""
        while not stop.wait(self._duration / 3):
            with suppress(MlopsError):
                self._renew()

    def check(self) -> None:
        """Renew the lease if its time has passed.

        Raises:
            UnavailableError: another deployment has taken it, or the cluster does not answer.
        """
        if time.monotonic() - self._renewed > self._duration:
            self._renew()
        if self._successor:
            raise UnavailableError(
                f"this deployment was suspended, and another one took over: {self._successor}",
                where=f"lease {self._name}",
                next_step="see inv status --target aks when that one has ended",
            )

    def _renew(self) -> None:
        with self._lock:
            began = time.monotonic()
            lease = self._read()
            holder = lease["spec"].get("holderIdentity") if lease else ""
            if lease is None or holder != self._identity:
                self._successor = holder or "one that has ended already"
                return
            self._cluster.replace({**lease, "spec": {**lease["spec"], "renewTime": _now()}})
            self._renewed = began

    def release(self) -> None:
        """Delete the lease, unless it is another's. A failure is no harm: it expires."""
        with suppress(MlopsError):
            lease = self._read()
            if lease and lease["spec"].get("holderIdentity") == self._identity:
                self._cluster.delete(_API, _KIND, self._name)

    def _read(self) -> Object | None:
        return self._cluster.get(_API, _KIND, self._name)

    def _busy(self, lease: Object | None) -> UnavailableError:
        holder = lease["spec"].get("holderIdentity", "?") if lease else "?"
        return UnavailableError(
            f"another deployment is still running: {holder}",
            where=f"lease {self._name}",
            next_step="wait for its end, and run the command again",
        )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
