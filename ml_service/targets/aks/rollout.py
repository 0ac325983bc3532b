"""Wait for a Deployment to come up, and report why when it does not.

When a rollout is complete, and why each condition is needed:

- ``observedGeneration`` has reached the Deployment's generation. Before that the whole status, conditions included, is
  about the template before, and would report success or failure of the wrong version.
- ``updatedReplicas``, ``replicas`` and ``availableReplicas`` all equal the number that is wanted: every pod is new, no
  pod of the version before is left, and each is ready.
- The number that is wanted is not 0: a Deployment that was scaled to nothing would be complete without serving.

A rollout has failed early when the cluster cannot create a pod (a quota), when its progress deadline is over, or when
a pod of the newest template waits for a reason that time does not change, or ended before it was ready. Only pods that
are not ready count: one that restarted last week and is ready now says nothing about this rollout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from ml_service.common.errors import LOG_LINES
from ml_service.config import AksSettings
from ml_service.errors import MlopsError, UnhealthyError
from ml_service.ports import Progress
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import PREVIOUS, Version, read_version

_POLL = 0.5
_PROGRESS_INTERVAL = 5.0

_FATAL_REASONS = (
    *("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"),
    *("CreateContainerError", "RunContainerError"),
)
"""Reasons for which a container waits that do not go away within a deployment."""

_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"

Mask = Callable[[str], str]


class Rollout:
    """Watches the pods that the Deployment ``name`` creates from its newest template."""

    def __init__(self, cluster: Cluster, name: str, mask: Mask) -> None:
        self._cluster = cluster
        self._name = name
        self._mask = mask

    def wait(self, version: str, timeout: float, progress: Progress) -> None:
        """Wait until every pod holds ``version`` and is ready, at most ``timeout`` seconds.

        Raises:
            UnhealthyError: it did not come up; with events and the pods' last log lines.
        """
        deadline = time.monotonic() + timeout
        reported = time.monotonic()
        while True:
            deployment = self._read()
            if deployment is None:
                raise self._failed(version, "its Deployment was deleted")
            if _is_complete(deployment):
                return
            if reason := self._fatal(deployment):
                raise self._failed(version, reason)
            if time.monotonic() > deadline:
                raise self._failed(version, f"it was not ready after {timeout:g} s")
            if time.monotonic() - reported > _PROGRESS_INTERVAL:
                reported = time.monotonic()
                progress(f"{version}: {_describe(deployment)}")
            time.sleep(_POLL)

    def pods(self) -> Sequence[Object]:
        """Return the pods of the newest template that are not being deleted.

        There are none until the cluster has observed that template.
        """
        deployment = self._read()
        if deployment is None or not _is_observed(deployment):
            return []
        selector = _selector(deployment)
        template_hash = self._newest(deployment, selector)
        if not template_hash:
            return []
        pods = self._cluster.list("v1", "Pod", labelSelector=f"{selector},{_HASH}={template_hash}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _read(self) -> Object | None:
        return self._cluster.get("apps/v1", "Deployment", self._name)

    def _newest(self, deployment: Object, selector: str) -> str:
        """Return the label of the newest ReplicaSet's pods. The package does not tell: limits may have changed."""
        revision = deployment["metadata"].get("annotations", {}).get(_REVISION)
        for replica_set in self._cluster.list("apps/v1", "ReplicaSet", labelSelector=selector):
            if replica_set["metadata"].get("annotations", {}).get(_REVISION) == revision:
                return str(replica_set["metadata"]["labels"][_HASH])
        return ""

    def _fatal(self, deployment: Object) -> str:
        """Return why the rollout cannot succeed any more, or nothing."""
        if not _is_observed(deployment):
            return ""
        for condition in deployment.get("status", {}).get("conditions", []):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return f"the cluster makes no pod: {condition.get('message', '')}"
            if condition.get("reason") == "ProgressDeadlineExceeded":
                return str(condition.get("message", "it made no progress"))
        for pod in self.pods():
            if not _is_ready(pod) and (reason := _fatal_state(pod)):
                return f"pod {pod['metadata']['name']}: {reason}"
        return ""

    def _failed(self, version: str, reason: str) -> UnhealthyError:
        lines = [f"{version} did not come up: {reason}"]
        for pod in self.pods()[:2]:
            name = pod["metadata"]["name"]
            lines += [f"  event  {line}" for line in self._events(name)]
            lines += [f"  | {self._mask(line)}" for line in last_lines(self._cluster, name, LOG_LINES)]
        where = f"Deployment {self._name}"
        return UnhealthyError("\n".join(lines), where=where, next_step="see: inv logs --target aks")

    def _events(self, pod: str) -> list[str]:
        events = self._cluster.list("v1", "Event", fieldSelector=f"involvedObject.name={pod}")
        return [f"{event['reason']}: {event.get('message', '')[:300]}" for event in events if event["type"] != "Normal"]


def last_lines(cluster: Cluster, pod: str, lines: int) -> Sequence[str]:
    """Return a pod's last log lines, those before a restart included.

    A log that cannot be read becomes a line that says so: it must not replace the failure that is being reported.
    """
    log: list[str] = []
    for previous in (True, False):
        try:
            log += cluster.log(pod, lines, previous=previous)
        except MlopsError as error:
            log.append(f"(its log cannot be read: {error.what})")
    return log[-lines:]


def pod_names(pods: Iterable[Object]) -> set[str]:
    """Return the names of ``pods``."""
    return {pod["metadata"]["name"] for pod in pods}


def timeout_for(deployment: Object, aks: AksSettings) -> float:
    """Return the seconds that a rollout may take: pods are replaced a quarter at a time (maxSurge 25 %)."""
    replicas = int(deployment["spec"].get("replicas", 1))
    return aks.startup_timeout * min(replicas, 4) + aks.drain_seconds


def serving_versions(stable: Object | None) -> tuple[Version | None, Version | None]:
    """Return the version that every pod of the stable track holds or held, and the one before it.

    A rollout that was killed half-way has recorded its version in the annotations already. The version that serves, and
    that is worth going back to, is still the one before.
    """
    current, previous = read_version(stable), read_version(stable, PREVIOUS)
    if stable and previous and is_half_way(stable):
        return previous, None
    return current, previous


def is_half_way(deployment: Object) -> bool:
    """Return whether pods of a version before are still there."""
    status = deployment.get("status", {})
    return bool(status.get("replicas", 0) > status.get("updatedReplicas", 0))


def shortfall(deployment: Object, least: int) -> str:
    """Return ``0 of 1 pods hold`` while older pods remain or fewer than ``least`` new ones are ready; else nothing."""
    status, wanted = deployment.get("status", {}), max(deployment["spec"].get("replicas", 1), least)
    old = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    # Old pods stay available until new ones replace them, so the other available pods are new.
    ready = max(0, status.get("availableReplicas", 0) - old)
    is_short = is_half_way(deployment) or ready < least or not _is_observed(deployment)
    return f"{min(ready, wanted)} of {wanted} pods hold" if is_short else ""


def _selector(deployment: Object) -> str:
    labels = deployment["spec"]["selector"]["matchLabels"]
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _is_observed(deployment: Object) -> bool:
    observed = deployment.get("status", {}).get("observedGeneration", 0)
    return bool(observed >= deployment["metadata"]["generation"])


def _is_complete(deployment: Object) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    if not _is_observed(deployment):
        return False
    counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    return bool(wanted > 0 and counts == [wanted] * 3)


def _describe(deployment: Object) -> str:
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    new, ready, all_ = (status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas"))
    return f"{new} of {wanted} pods are new, {ready} of {all_} ready"


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)


def _fatal_state(pod: Object) -> str:
    """Return why a container of the pod will not get ready, or nothing."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in _FATAL_REASONS:
            return f"{waiting['reason']} {waiting.get('message', '')[:300]}".strip()
        ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if ended:
            code, reason = ended.get("exitCode"), ended.get("reason", "")
            return f"its process ended with code {code} ({reason}) before it was ready"
    return ""
