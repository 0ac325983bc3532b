"""The Deployments of one model, by track: ``stable`` serves, ``candidate`` is verified, ``canary`` gets a share."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ml_service.config import Settings
from ml_service.ports import Progress
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import CANARY, CANDIDATE, STABLE, track_name

_DEPLOYMENT = ("apps/v1", "Deployment")
_GONE_TIMEOUT = 60.0
_GONE_POLL = 0.5


class Tracks:
    """Reads and deletes the Deployments, and lists their pods."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings

    def name(self, track: str) -> str:
        """Return the name of the track's Deployment."""
        return track_name(self._settings, track)

    def read(self, track: str = STABLE) -> Object | None:
        """Return the track's Deployment, or None."""
        return self._cluster.get(*_DEPLOYMENT, self.name(track))

    def delete(self, track: str) -> None:
        """Delete the track's Deployment and, with it, its pods. None is no error."""
        self._cluster.delete(*_DEPLOYMENT, self.name(track))

    def delete_all(self) -> None:
        """Delete all three. Their pods end later: see ``wait_until_gone``."""
        for track in (CANARY, CANDIDATE, STABLE):
            self.delete(track)

    def wait_until_gone(self, progress: Progress) -> None:
        """Wait until no container runs. The cluster deletes what remains of the pods later."""
        deadline = time.monotonic() + _GONE_TIMEOUT + self._settings.aks.drain_seconds
        while running := [pod for pod in self.pods() if _has_container(pod)]:
            if time.monotonic() > deadline:
                return progress(f"{len(running)} pods have not ended yet; the cluster kills them after their deadline")
            time.sleep(_GONE_POLL)
        progress("no container runs any more")

    def pods(self, track: str = "") -> Sequence[Object]:
        """Return the pods of a track that are not being deleted; without a track all pods, those included."""
        selector = f"app.kubernetes.io/name={self._settings.aks.name}"
        if not track:
            return self._cluster.list("v1", "Pod", labelSelector=selector)
        pods = self._cluster.list("v1", "Pod", labelSelector=f"{selector},mlops/track={track}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _has_container(pod: Object) -> bool:
    return any("running" in one.get("state", {}) for one in pod.get("status", {}).get("containerStatuses", []))
