"""A canary: how many pods make which share of the traffic, and how it starts and ends.

The share is made in one of two ways:

- By pods. The Service selects the pods of both tracks (``mlops/serves: yes``), and kube-proxy gives each the same part
  of new connections. So the numbers of pods are the share, and the autoscaler must not move them meanwhile.
- By weights. With a Gateway each track has a Service of its own, and a route sends each its weight. Weights change only
  after the canary's Service leads to its pods, and go back to zero before those pods go: a route that leads to a
  Service without pods answers 503.

``mlops/canary-ready`` is written last. A canary without it is starting, or its deployment was killed; the next
deployment deletes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ml_service.config import AksSettings, Settings
from ml_service.errors import UsageError
from ml_service.ports import Progress
from ml_service.targets.aks import canary_metrics
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import CANARY, STABLE, Version, deployment, read_version
from ml_service.targets.aks.ingress import Exposure
from ml_service.targets.aks.objects import KeySecret, SupportingObjects
from ml_service.targets.aks.rollout import Rollout, pod_names, timeout_for
from ml_service.targets.aks.tracks import Tracks

SHARE, READY = "mlops/canary-percent", "mlops/canary-ready"

TOLERANCE = 5.0
"""Points by which the share that pods make may differ from the one that was asked for."""

_NEAR_ENOUGH = 2.0
"""Points of difference for which no further pod is spent."""


@dataclass(frozen=True)
class Share:
    """Numbers of pods, which make the share, unless ``weight`` does (in percent)."""

    stable: int
    canary: int
    weight: int | None = None

    @property
    def total(self) -> int:
        """The number of all pods."""
        return self.stable + self.canary

    @property
    def percent(self) -> float:
        """The candidate's share of the traffic."""
        return self.weight if self.weight is not None else 100 * self.canary / self.total


def share_for(percent: int, stable: Object, aks: AksSettings, *, by_weights: bool) -> Share:
    """Return the share for a canary beside the Deployment ``stable``.

    Raises:
        UsageError: ``percent`` is not from 1 to 99, or pods cannot make it.
    """
    return weighted(percent, stable["spec"].get("replicas", 1), aks) if by_weights else share(percent, aks)


def share(percent: int, aks: AksSettings) -> Share:
    """Return the fewest pods that come near ``percent``, within the limits of the settings.

    Raises:
        UsageError: ``percent`` is not from 1 to 99, or is missed by more than TOLERANCE points.
    """
    _check(percent)
    possible = [
        Share(stable, canary)
        for stable in range(aks.min_replicas, aks.max_replicas)
        for canary in range(1, aks.max_replicas - stable + 1)
    ]
    if not possible:
        raise UsageError(
            "leaves no pod for a canary",
            where=f"AKS_MAX_REPLICAS={aks.max_replicas}",
            next_step="set AKS_MAX_REPLICAS to more than AKS_MIN_REPLICAS",
        )
    best = min(possible, key=lambda one: (max(0.0, abs(one.percent - percent) - _NEAR_ENOUGH), one.total))
    if abs(best.percent - percent) > TOLERANCE:
        raise UsageError(
            f"with at most {aks.max_replicas} pods the nearest to {percent} % is {best.percent:.1f} %",
            where="--canary",
            next_step=f"set AKS_MAX_REPLICAS higher, or use --canary {round(best.percent)}",
        )
    return best


def weighted(percent: int, stable: int, aks: AksSettings) -> Share:
    """Return exactly ``percent``, by a route's weights, with pods for it in proportion to the ``stable`` ones.

    The candidate gets one pod at least, and no more than AKS_MAX_REPLICAS has left.

    Raises:
        UsageError: ``percent`` is not from 1 to 99.
    """
    _check(percent)
    pods = math.ceil(stable * percent / 100)
    return Share(stable, max(1, min(pods, aks.max_replicas - stable)), weight=percent)


def _check(percent: int) -> None:
    if not 1 <= percent <= 99:
        raise UsageError("a canary gets from 1 to 99 %", where="--canary", next_step="use such as --canary 10")


def is_ready(canary: Object | None) -> bool:
    """Return whether a canary gets its share; False while it starts, or when its deployment was killed."""
    return canary is not None and READY in canary["metadata"].get("annotations", {})


class Canary:
    """Starts and ends the canary. Whoever calls this holds the lease."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        exposure: Exposure,
        objects: SupportingObjects,
        progress: Progress,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._exposure = exposure
        self._objects = objects
        self._progress = progress
        self._tracks = Tracks(cluster, settings)
        self._keys = KeySecret(cluster, settings)

    def pin_stable(self, share: Share) -> None:
        """Hold the stable track at its number of pods, so that the share stays what it is."""
        self._objects.set_autoscaler(share.stable, share.stable)
        self._cluster.scale(self._tracks.name(STABLE), share.stable)
        if stable := self._tracks.read():
            self._wait_for_pods(STABLE, stable, str(read_version(stable)))

    def start(self, version: Version, share: Share, key: str) -> None:
        """Start the candidate's pods. By pods that is its share already; by weights it has none yet."""
        body = deployment(self._settings, version.serving_now(), CANARY)
        body["metadata"]["annotations"] |= {
            SHARE: f"{share.percent:.1f}",
            # Read before the canary's pods take requests: only what both versions count from now on is compared.
            canary_metrics.BASELINE: canary_metrics.baseline(self._cluster, self._settings, key),
        }
        applied = self._cluster.apply(body, force=True)
        self._cluster.scale(self._tracks.name(CANARY), share.canary)
        pods = self._wait_for_pods(CANARY, applied, str(version))
        if share.weight is None:
            self._exposure.wait_for_endpoints(lambda endpoints: pods <= endpoints)
            self._mark_ready(share)

    def set_weight(self, share: Share) -> None:
        """Send the candidate its share by a route's weights."""
        assert share.weight is not None
        pods = pod_names(self._rollout(CANARY).pods())
        self._exposure.set_weight(share.weight, pods, self._progress)
        self._mark_ready(share)

    def end(self) -> None:
        """Take the candidate's share away, then its pods, and let the autoscaler go on."""
        self._exposure.reset_weights()
        self._tracks.delete(CANARY)
        self._objects.reset_autoscaler()
        self._progress("the canary is over")

    def _mark_ready(self, share: Share) -> None:
        """Add the annotation to those of the same Deployment: server-side apply deletes what is not sent again."""
        canary = self._tracks.read(CANARY)
        version = read_version(canary)
        assert canary is not None and version is not None
        body = deployment(self._settings, version, CANARY)
        written = {name: canary["metadata"]["annotations"][name] for name in (SHARE, canary_metrics.BASELINE)}
        body["metadata"]["annotations"] |= {**written, READY: "yes"}
        self._cluster.apply(body, force=True)
        goes = f"{version} gets {share.percent:.1f} % of the traffic"
        self._progress(f"{goes}: {share.canary} of {share.total} pods")

    def _wait_for_pods(self, track: str, body: Object, version: str) -> set[str]:
        rollout = self._rollout(track)
        rollout.wait(version, timeout_for(body, self._settings.aks), self._progress)
        return pod_names(rollout.pods())

    def _rollout(self, track: str) -> Rollout:
        return Rollout(self._cluster, self._tracks.name(track), self._keys.mask())
