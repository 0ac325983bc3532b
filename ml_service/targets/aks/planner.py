"""Plan what would change on the cluster. The server itself computes each difference, by a dry run.

Plans are compared by their words (``common.plan.due_steps``): between planning and performing, the cluster goes on by
itself. Autoscalers change numbers of pods, and a rollout whose deployment was killed may end. So a step's subject names
only what people and deployments decide; numbers and differences of the moment are in ``diff``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ml_service.common.errors import no_previous_version
from ml_service.config import Settings
from ml_service.errors import UsageError
from ml_service.ports import Action, Step
from ml_service.targets.aks.canary import Share, is_ready, share_for
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import CANARY, PREVIOUS, STABLE, Version, deployment, read_version
from ml_service.targets.aks.ingress import Exposure
from ml_service.targets.aks.manifests import difference
from ml_service.targets.aks.objects import KeySecret, SupportingObjects
from ml_service.targets.aks.rollout import serving_versions, shortfall
from ml_service.targets.aks.tracks import Tracks


@dataclass(frozen=True)
class Replacement:
    """The detail of the step that changes the stable Deployment; ``previous`` is what a rollback brings back."""

    version: Version
    previous: Version | None


@dataclass(frozen=True)
class CanaryPods:
    """The detail of the step that starts a canary's pods."""

    version: Version
    share: Share


class Planner:
    """Returns steps, and changes nothing. Each step's ``detail`` is what ``Executor`` needs to perform it."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._aks = settings.aks
        self._tracks = Tracks(cluster, settings)
        self._exposure = Exposure(cluster, settings)
        self._objects = SupportingObjects(cluster, settings, self._exposure)
        self._keys = KeySecret(cluster, settings)

    def deployment(self, wanted: Version, canary_percent: int | None) -> list[Step]:
        """Return the steps by which ``wanted`` would serve, or get a share of the traffic.

        Raises:
            UsageError: a canary is running, or nothing serves beside which one could run.
            UnavailableError: the cluster does not answer, or somebody else owns a field that would change.
        """
        canary = self._tracks.read(CANARY)
        if is_ready(canary):
            raise UsageError(
                "a canary is running",
                where="target aks",
                next_step="end it: inv promote --target aks, or inv rollback --target aks",
            )
        # A canary that is not ready was killed while it started: it has pods, but no recorded share.
        subject = f"Deployment {self._tracks.name(CANARY)}: a canary that never began"
        steps = [Step(Action.DELETE, subject, detail=CANARY)] if canary else []
        if canary_percent is not None:
            return steps + self._canary(wanted, canary_percent)
        return steps + self._supporting() + self._stable(wanted)

    def rollback(self) -> list[Step]:
        """Return the steps that bring back the version before, or that end a canary.

        Raises:
            UsageError: there is no version before.
        """
        if self._tracks.read(CANARY) is not None:
            return [self._end_of_canary()]
        previous = read_version(self._tracks.read(), PREVIOUS)
        if previous is None:
            raise no_previous_version("aks")
        return [*self._supporting(), *self._candidate(previous), self._replacement(previous, None)]

    def promotion(self, version: Version) -> list[Step]:
        """Return the steps by which the canary's ``version`` takes all traffic."""
        return [self._replacement(version, read_version(self._tracks.read())), self._end_of_canary()]

    def _stable(self, wanted: Version) -> list[Step]:
        """Replace the pods that serve, or wait for those that are missing; nothing when they are as they should be."""
        stable = self._tracks.read()
        current, previous = serving_versions(stable)
        recorded = read_version(stable)
        shown = recorded if recorded and wanted.same_as(recorded) else wanted
        before = previous if wanted.same_as(current) else current
        change = self._change(deployment(self._settings, shown, STABLE, before), Replacement(wanted, before))
        if change:
            return [*self._candidate(wanted), change]
        if stable and (missing := shortfall(stable, self._aks.min_replicas)):
            subject = f"Deployment {self._aks.name}: all pods are to hold {shown}"
            return [Step(Action.RESTORE, subject, f"{missing} {shown}")]
        return []

    def _candidate(self, version: Version) -> list[Step]:
        return [
            Step(Action.START, f"{version} in a pod of its own, which serves nobody", detail=version),
            Step(Action.VERIFY, f"{version} in that pod", detail=version),
        ]

    def _replacement(self, version: Version, previous: Version | None) -> Step:
        return Step(Action.CHANGE, f"Deployment {self._aks.name}", detail=Replacement(version, previous))

    def _end_of_canary(self) -> Step:
        return Step(Action.DELETE, f"Deployment {self._tracks.name(CANARY)}", detail=CANARY)

    def _supporting(self) -> list[Step]:
        """Bring the objects around the Deployments to what the settings say."""
        steps = [step for body in self._objects.manifests() if (step := self._change(body, body))]
        for orphan in self._exposure.orphans():
            steps.append(Step(Action.DELETE, f"{orphan.kind} {orphan.name}: {orphan.reason}", detail=orphan))
        if not self._keys.exists():
            steps.append(Step(Action.CREATE, f"Secret {self._keys.name}, with two new keys", detail=self._keys))
        return steps

    def _change(self, body: Object, detail: Object | Replacement) -> Step | None:
        """Return the step that applies ``body``, or None when the server would change nothing."""
        kind, name = body["kind"], body["metadata"]["name"]
        before = self._cluster.get(body["apiVersion"], kind, name)
        after = self._cluster.apply(body, dry_run=True, force=self._aks.take_over)
        action = Action.CHANGE if before else Action.CREATE
        diff = difference(before, after)
        return Step(action, f"{kind} {name}", diff, detail) if diff else None

    def _canary(self, wanted: Version, percent: int) -> list[Step]:
        stable = self._tracks.read()
        current = read_version(stable)
        if stable is None or current is None:
            raise UsageError(
                "nothing serves yet, so there is no version to share the traffic with",
                where="--canary",
                next_step="run: inv deploy --target aks",
            )
        if wanted.same_as(current):
            return []
        route = self._exposure.route
        share = share_for(percent, stable, self._aks, by_weights=route is not None)
        goes = f"{share.percent:.1f} % of the traffic goes to {wanted}"
        name, pods = f"Deployment {self._tracks.name(CANARY)}", CanaryPods(wanted, share)
        if route:
            sharing = [
                Step(Action.CREATE, f"{name}: {wanted}", f"{share.canary} pods", pods),
                Step(Action.CHANGE, f"{route}: {goes}", detail=share),
            ]
        else:
            sharing = [
                Step(Action.SCALE, f"{current} to {share.stable} pods", detail=share),
                Step(Action.CREATE, f"{name}: {share.canary} pods, so {goes}", detail=pods),
            ]
        return [*self._supporting(), *self._candidate(wanted), *sharing]
