"""Waiting for a Deployment to come up, and saying why when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ml_service.errors import MlopsError, UnhealthyError
from ml_service.ports import Progress
from ml_service.targets.aks.client import Cluster, Object

_POLL = 0.5
_SAY_AGAIN = 5.0
_LAST_LINES = 15

_HOPELESS = (
    *("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"),
    *("CreateContainerError", "RunContainerError"),
)
"""Reasons for which a container waits that waiting does not cure within a deployment."""

Mask = Callable[[str], str]


_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"


class Rollout:
    """Watches the pods that one Deployment makes from its newest template."""

    def __init__(self, cluster: Cluster, deployment: Object, mask: Mask) -> None:
        self._cluster = cluster
        self._deployment = deployment
        self._mask = mask
        self._name: str = deployment["metadata"]["name"]

    def wait(self, what: str, timeout: float, progress: Progress) -> None:
        """Until every pod holds the new version and is ready.

        Raises:
            UnhealthyError: it does not come up: with events and the pods' last lines.
        """
        deadline = time.monotonic() + timeout
        said = time.monotonic()
        while True:
            now = self._cluster.get("apps/v1", "Deployment", self._name)
            if now is None:
                raise self._failed(what, "its Deployment was deleted")
            if _is_complete(now):
                return
            if why := self._hopeless(now):
                raise self._failed(what, why)
            if time.monotonic() > deadline:
                raise self._failed(what, f"it was not ready after {timeout:g} s")
            if time.monotonic() - said > _SAY_AGAIN:
                said = time.monotonic()
                progress(f"{what}: {_how_far(now)}")
            time.sleep(_POLL)

    def pods(self) -> Sequence[Object]:
        """The pods of the newest template, those that end left out; none before the cluster has seen that template."""
        now = self._cluster.get("apps/v1", "Deployment", self._name)
        code = self._newest(now) if now and _is_observed(now) else ""
        found = self._cluster.list("v1", "Pod", labelSelector=f"{self._selector()},{_HASH}={code}") if code else []
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def _newest(self, deployment: Object) -> str:
        """What marks the pods of the newest ReplicaSet; the package does not, since its limits may have changed."""
        revision = deployment["metadata"].get("annotations", {}).get(_REVISION)
        for one in self._cluster.list("apps/v1", "ReplicaSet", labelSelector=self._selector()):
            if one["metadata"].get("annotations", {}).get(_REVISION) == revision:
                return str(one["metadata"]["labels"][_HASH])
        return ""

    def _selector(self) -> str:
        labels = self._deployment["spec"]["selector"]["matchLabels"]
        return ",".join(f"{name}={value}" for name, value in labels.items())

    def _hopeless(self, deployment: Object) -> str:
        if not _is_observed(deployment):
            return ""  # What its conditions say is still about the version before.
        for condition in deployment.get("status", {}).get("conditions", []):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return f"the cluster makes no pod: {condition.get('message', '')}"
            if condition.get("reason") == "ProgressDeadlineExceeded":
                return str(condition.get("message", "it made no progress"))
        for pod in self.pods():
            if not _is_ready(pod) and (why := _pod_trouble(pod)):
                return f"pod {pod['metadata']['name']}: {why}"
        return ""

    def _failed(self, what: str, why: str) -> UnhealthyError:
        said = [f"{what} did not come up: {why}"]
        for pod in self.pods()[:2]:
            name = pod["metadata"]["name"]
            said += [f"  event  {line}" for line in self._events(name)]
            said += [f"  | {self._mask(line)}" for line in last_lines(self._cluster, name, _LAST_LINES)]
        return UnhealthyError("\n".join(said), where=f"Deployment {self._name}", next_step="see: inv logs --target aks")

    def _events(self, pod: str) -> list[str]:
        events = self._cluster.list("v1", "Event", fieldSelector=f"involvedObject.name={pod}")
        return [f"{event['reason']}: {event.get('message', '')[:300]}" for event in events if event["type"] != "Normal"]


def last_lines(cluster: Cluster, pod: str, lines: int) -> Sequence[str]:
    """What a pod said last, its process before included. What cannot be read hides no failure that is being told."""
    found: list[str] = []
    for previous in (True, False):
        try:
            found += cluster.log(pod, lines, previous=previous)
        except MlopsError as error:
            found.append(f"(its log cannot be read: {error.what})")
    return found[-lines:]


def is_half_way(deployment: Object) -> bool:
    """Whether pods of a version before are still there."""
    status = deployment.get("status", {})
    return bool(status.get("replicas", 0) > status.get("updatedReplicas", 0))


def shortfall(deployment: Object, least: int) -> str:
    """``0 of 1 pods hold`` while older pods remain or fewer than ``least`` new ones are ready; else empty."""
    status, wanted = deployment.get("status", {}), max(deployment["spec"].get("replicas", 1), least)
    old = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    # Those before are kept available until others replace them, so the rest of the available ones is new.
    ready = max(0, status.get("availableReplicas", 0) - old)
    is_short = is_half_way(deployment) or ready < least or not _is_observed(deployment)
    return f"{min(ready, wanted)} of {wanted} pods hold" if is_short else ""


def _is_observed(deployment: Object) -> bool:
    seen = deployment.get("status", {}).get("observedGeneration", 0)
    return bool(seen >= deployment["metadata"]["generation"])


def _is_complete(deployment: Object) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    if not _is_observed(deployment):
        return False
    counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    return bool(wanted > 0 and counts == [wanted] * 3)


def _how_far(deployment: Object) -> str:
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    new, ready, all_ = (status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas"))
    return f"{new} of {wanted} pods are new, {ready} of {all_} ready"


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)


def _pod_trouble(pod: Object) -> str:
    for container in pod.get("status", {}).get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in _HOPELESS:
            return f"{waiting['reason']} {waiting.get('message', '')[:300]}".strip()
        ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if ended:
            code, reason = ended.get("exitCode"), ended.get("reason", "")
            return f"its process ended with code {code} ({reason}) before it was ready"
    return ""
