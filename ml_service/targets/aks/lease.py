"""One deployment at a time, across machines: a Lease object in the cluster. ``common/lease.py`` has the rest.

The API server's compare-and-swap is the only thing that is trusted:

- Taking. A missing Lease is created. A free or expired one is replaced under the ``resourceVersion`` that was read, so
  of two takers the server accepts one, and the other one gets a Conflict.
- Losing. A holder can be suspended for longer than ``duration`` and wake up while its successor works. So before each
  write ``Cluster`` calls ``check``. If more than ``duration`` has passed since the last renewal, it renews first and
  learns who holds the lease now. Before that time no successor can have begun: it had to watch for ``duration`` itself.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from ml_service.common import lease as leases
from ml_service.errors import UnavailableError
from ml_service.ports import Progress
from ml_service.targets.aks.client import Cluster, Conflict, Object

_API, _KIND = "coordination.k8s.io/v1", "Lease"


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
    with leases.held(lease, progress, duration=duration, timeout=timeout):
        cluster.before_write = lease.check
        try:
            yield
        finally:
            cluster.before_write = lambda: None


class _Lease:
    """The lease as one process sees it. Its ``cluster`` is a copy, whose writes are not checked by the lease itself."""

    def __init__(self, cluster: Cluster, name: str, duration: int) -> None:
        self.where = f"lease {name}"
        self._cluster = cluster
        self._name = name
        self._duration = duration
        self._identity = leases.identity()
        self._seen: Object | None = None
        self._renewed = time.monotonic()
        self._successor = ""
        self._lock = threading.Lock()

    def read(self) -> str:
        self._seen = self._get()
        holder = _holder(self._seen)
        return f"{holder} since {self._seen['spec'].get('renewTime')}" if self._seen and holder else ""

    def take(self) -> bool:
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": self._duration, "renewTime": _now()}
        # Counted from before the request: the server may have taken it at any moment of the call.
        began = time.monotonic()
        try:
            if self._seen is None:
                metadata = {"name": self._name}
                self._cluster.create({"apiVersion": _API, "kind": _KIND, "metadata": metadata, "spec": spec})
            else:
                self._cluster.replace({**self._seen, "spec": spec})
        except Conflict:
            return False
        self._renewed = began
        return True

    def renew(self) -> None:
        with self._lock:
            began = time.monotonic()
            lease = self._get()
            if lease is None or _holder(lease) != self._identity:
                self._successor = _holder(lease) or "one that has ended already"
                return
            self._cluster.replace({**lease, "spec": {**lease["spec"], "renewTime": _now()}})
            self._renewed = began

    def release(self) -> None:
        if _holder(self._get()) == self._identity:
            self._cluster.delete(_API, _KIND, self._name)

    def check(self) -> None:
        """Renew the lease if its time has passed.

        Raises:
            UnavailableError: another deployment has taken it, or the cluster does not answer.
        """
        if time.monotonic() - self._renewed > self._duration:
            self.renew()
        if self._successor:
            raise UnavailableError(
                f"this deployment was suspended, and another one took over: {self._successor}",
                where=self.where,
                next_step="see inv status --target aks when that one has ended",
            )

    def _get(self) -> Object | None:
        return self._cluster.get(_API, _KIND, self._name)


def _holder(lease: Object | None) -> str:
    return str(lease["spec"].get("holderIdentity") or "") if lease else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
