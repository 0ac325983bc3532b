"""One deployment at a time, across machines: a Lease in the cluster, renewed while it is held."""

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


@contextmanager
def held(
    cluster: Cluster, name: str, progress: Progress, *, duration: int = 15, patience: float = 300
) -> Iterator[None]:
    """Hold the lease ``name``. One whose holder was killed is free after ``duration`` seconds.

    A holder that slept for longer, on a machine that was suspended, say, may find the next one at work: from then on
    ``cluster`` refuses it every change, those that would tidy up included.

    Raises:
        UnavailableError: another deployment holds it for longer than ``patience`` seconds.
    """
    lease = _Lease(copy.copy(cluster), name, duration)
    lease.acquire(progress, patience)
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
    def __init__(self, cluster: Cluster, name: str, duration: int) -> None:
        self._cluster = cluster
        self._name = name
        self._duration = duration
        self._me = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._renewed = time.monotonic()
        self._successor = ""
        self._lock = threading.Lock()

    def acquire(self, progress: Progress, patience: float) -> None:
        deadline = time.monotonic() + patience
        seen, since = "", time.monotonic()
        while True:
            lease = self._cluster.get(_API, _KIND, self._name)
            # Judged by this machine's clock alone: clocks of two machines may differ.
            stamp = str(lease["spec"]) if lease else ""
            if stamp != seen:
                seen, since = stamp, time.monotonic()
            if self._is_free(lease) or time.monotonic() - since > self._duration:
                if self._take(lease):
                    return
            elif time.monotonic() > deadline:
                raise self._busy(lease)
            elif time.monotonic() - since < 0.1:
                progress("another deployment is running, or was killed a moment ago; waiting for its lease")
            time.sleep(0.5)

    @staticmethod
    def _is_free(lease: Object | None) -> bool:
        return lease is None or not lease["spec"].get("holderIdentity")

    def _take(self, lease: Object | None) -> bool:
        spec = {"holderIdentity": self._me, "leaseDurationSeconds": self._duration, "renewTime": _now()}
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
        """A renewal that fails is tried again, and before the next change at the latest."""
        while not stop.wait(self._duration / 3):
            with suppress(MlopsError):
                self._renew()

    def check(self) -> None:
        """Nothing while the lease is ours; when its time has passed unrenewed, it is asked first.

        Raises:
            UnavailableError: another deployment has taken it, or the cluster does not say.
        """
        if time.monotonic() - self._renewed > self._duration:
            self._renew()
        if self._successor:
            raise UnavailableError(
                f"this deployment slept, and another one took over: {self._successor}",
                where=f"lease {self._name}",
                next_step="look at inv status --target aks when that one has ended",
            )

    def _renew(self) -> None:
        with self._lock:
            began = time.monotonic()
            lease = self._cluster.get(_API, _KIND, self._name)
            holder = lease["spec"].get("holderIdentity") if lease else ""
            if lease is None or holder != self._me:
                self._successor = holder or "one that has ended already"
                return
            self._cluster.replace({**lease, "spec": {**lease["spec"], "renewTime": _now()}})
            self._renewed = began

    def release(self) -> None:
        with suppress(MlopsError):
            lease = self._cluster.get(_API, _KIND, self._name)
            if lease and lease["spec"].get("holderIdentity") == self._me:
                self._cluster.delete(_API, _KIND, self._name)

    def _busy(self, lease: Object | None) -> UnavailableError:
        holder = lease["spec"].get("holderIdentity", "?") if lease else "?"
        return UnavailableError(
            f"another deployment is still running: {holder}",
            where=f"lease {self._name}",
            next_step="wait for its end, and run the command again",
        )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
