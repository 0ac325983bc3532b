"""Read what is deployed: status, endpoint, keys and logs. Nothing here changes the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from ml_service.common.errors import nothing_deployed
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.ports import Endpoint, Keys, Status
from ml_service.targets.aks import canary
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import CANARY, PREVIOUS, read_version
from ml_service.targets.aks.ingress import Exposure
from ml_service.targets.aks.objects import KeySecret
from ml_service.targets.aks.rollout import pod_names, shortfall
from ml_service.targets.aks.tracks import Tracks


class Reader:
    """Answers questions about the deployment that the settings name."""

    def __init__(self, cluster: Cluster, settings: Settings, packages: PackageStore) -> None:
        self._cluster = cluster
        self._packages = packages
        self._startup_timeout = settings.aks.startup_timeout
        self._tracks = Tracks(cluster, settings)
        self._exposure = Exposure(cluster, settings)
        self._keys = KeySecret(cluster, settings)

    def status(self) -> Status | None:
        """Return what serves, or None when nothing is deployed."""
        stable = self._tracks.read()
        version, previous = read_version(stable), read_version(stable, PREVIOUS)
        if stable is None or version is None:
            return None
        return Status(
            target="aks",
            url=self._exposure.url(timeout=0),
            model=version.model,
            build_id=version.build_id,
            package=str(self._packages.path(version.package_sha256)),
            package_sha256=version.package_sha256,
            image_digest=version.digest,
            since=version.since,
            previous=previous.model if previous else None,
            state=self._state(stable),
        )

    def status_with_address(self) -> Status:
        """Return what serves once clients can reach it: a new load balancer takes time to get its address.

        Raises:
            UsageError: nothing is deployed.
        """
        self._exposure.url(timeout=self._startup_timeout)
        status = self.status()
        if status is None:
            raise nothing_deployed("aks")
        return status

    def endpoint(self) -> Endpoint:
        """Return the address for clients, with a key.

        Raises:
            UsageError: nothing is deployed.
        """
        version = read_version(self._tracks.read())
        if version is None:
            raise nothing_deployed("aks")
        return Endpoint(self._exposure.url(timeout=0), self._keys.key_for(version))

    def keys(self) -> Keys:
        """Return both keys.

        Raises:
            UsageError: nothing is deployed.
        """
        if self._tracks.read() is None:
            raise nothing_deployed("aks")
        return self._keys.read()

    def logs(self, lines: int) -> Sequence[str]:
        """Return the last ``lines`` lines of all pods by time, each after its pod's name, with keys masked."""
        if lines <= 0:
            return []
        mask = self._keys.mask()
        logs = {name: self._cluster.log(name, lines, stamped=True) for name in pod_names(self._tracks.pods())}
        merged = [(name, *line.partition(" ")) for name, log_lines in logs.items() for line in log_lines]
        merged.sort(key=lambda one: _sortable(one[1]))
        return [f"{name} {mask(text)}" for name, _, _, text in merged[-lines:]]

    def package_hashes(self) -> set[str]:
        """Return the packages that serve, that a rollback would need, or that a canary serves."""
        stable = self._tracks.read()
        versions = [read_version(stable), read_version(stable, PREVIOUS), read_version(self._tracks.read(CANARY))]
        return {version.package_sha256 for version in versions if version}

    def _state(self, stable: Object) -> str:
        if not stable.get("status", {}).get("availableReplicas", 0):
            return "down: no pod is ready; see inv logs --target aks"
        if missing := shortfall(stable, 1):
            return f"rolling out: {missing} {read_version(stable)}"
        body = self._tracks.read(CANARY)
        version = read_version(body)
        if body is None or version is None:
            return "serving"
        if not canary.is_ready(body):
            return f"serving; a canary of {version} starts, or was killed: the next deployment removes it"
        percent = body["metadata"]["annotations"].get(canary.SHARE, "?")
        return f"serving; canary: {version} gets {percent} % of the traffic"


def _sortable(timestamp: str) -> tuple[str, str]:
    """Return a log's timestamp in a form that sorts: its fraction has as many digits as it needs."""
    seconds, _, fraction = timestamp.rstrip("Z").partition(".")
    return seconds, fraction.ljust(9, "0")
