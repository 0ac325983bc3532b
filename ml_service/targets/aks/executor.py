"""Perform the steps of a plan. Whoever calls this holds the lease.

A rolling update, step by step, and why no request is lost:

1. The candidate starts in a pod that no Service selects (``mlops/serves: no``) and is verified there, through a
   port-forward. A bad version never meets a client.
2. The stable Deployment gets the new template. Its strategy (maxUnavailable 0) lets a pod go only when another one is
   ready, so there is never less capacity than before.
3. A pod that is deleted runs its ``preStop`` sleep first (AKS_DRAIN_SECONDS). Meanwhile it leaves the Endpoints, every
   router hears of it, and requests that still arrive are answered. Then the server finishes what it works on.
4. The rollout counts as done when every pod is new and ready and the Service leads to those pods alone.

A process that ends at any of these points leaves a cluster that serves. An exception undoes what was done; after
``kill -9`` the next plan finds the rest: a Deployment whose rollout is not complete, or a canary that is not ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ml_service.common import errors, plan
from ml_service.common.package_store import PackageStore
from ml_service.common.verify import verify_candidate
from ml_service.config import Settings
from ml_service.errors import UnhealthyError
from ml_service.ports import Action, Endpoint, Progress, Step, Verify
from ml_service.targets.aks.canary import Canary, Share
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import CANARY, CANDIDATE, STABLE, Version, deployment, read_version
from ml_service.targets.aks.ingress import Exposure
from ml_service.targets.aks.objects import KeySecret, SupportingObjects
from ml_service.targets.aks.planner import CanaryPods, Replacement
from ml_service.targets.aks.port_forward import PORT, forwarded
from ml_service.targets.aks.rollout import Rollout, is_half_way, last_lines, pod_names, serving_versions, timeout_for
from ml_service.targets.aks.tracks import Tracks


class Executor:
    """Performs steps of ``Planner``, and undoes them when one fails.

    ``verify`` is called on a candidate that has started; ``packages`` holds the examples that it is verified with.
    """

    def __init__(
        self, cluster: Cluster, settings: Settings, packages: PackageStore, verify: Verify, progress: Progress
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._aks = settings.aks
        self._packages = packages
        self._verify_endpoint = verify
        self._progress = progress
        self._tracks = Tracks(cluster, settings)
        self._exposure = Exposure(cluster, settings)
        self._objects = SupportingObjects(cluster, settings, self._exposure)
        self._keys = KeySecret(cluster, settings)
        self._canary = Canary(cluster, settings, self._exposure, self._objects, progress)

    def perform(self, steps: Sequence[Step]) -> None:
        """Perform ``steps`` in their order. The candidate's own pod is deleted in the end, whatever happens.

        Raises:
            UnhealthyError: a version did not come up or did not pass; what served before serves.
            UnavailableError: the cluster refused something, or another deployment took the lease.
        """
        starts_canary = any(isinstance(step.detail, CanaryPods) for step in steps)
        try:
            plan.perform(steps, self._performers())
        except BaseException:
            if starts_canary:
                self._canary.end()
            raise
        finally:
            if any(step.action is Action.START for step in steps):
                self._tracks.delete(CANDIDATE)
                if read_version(self._tracks.read()) is None:
                    # A first deployment that failed. The keys stay: deploying again must not change them.
                    self._objects.delete()

    def _performers(self) -> Mapping[Action, Callable[[Step], None]]:
        return {
            Action.CREATE: self._apply,
            Action.CHANGE: self._apply,
            Action.DELETE: self._delete,
            Action.START: self._start_candidate,
            Action.VERIFY: self._verify,
            Action.RESTORE: self._restore,
            Action.SCALE: lambda step: self._canary.pin_stable(step.detail),
        }

    def _apply(self, step: Step) -> None:
        match step.detail:
            case Replacement() as replacement:
                self._replace_stable(replacement)
            case CanaryPods(version, share):
                self._canary.start(version, share, self._keys.key_for(version))
            case KeySecret() as keys:
                keys.create()
            case Share() as share:
                self._canary.set_weight(share)
            case manifest:
                self._cluster.apply(manifest, force=self._aks.take_over)

    def _delete(self, step: Step) -> None:
        if step.detail == CANARY:
            self._canary.end()
        else:
            self._exposure.delete_orphan(step.detail)

    def _start_candidate(self, step: Step) -> None:
        version: Version = step.detail
        self._progress(f"starting {version} in a pod of its own")
        self._cluster.apply(deployment(self._settings, version, CANDIDATE), force=True)
        self._candidate().wait(str(version), self._aks.startup_timeout, self._progress)

    def _verify(self, step: Step) -> None:
        version: Version = step.detail
        pod: str = self._candidate().pods()[0]["metadata"]["name"]
        self._progress(f"{version} is ready; verifying it in pod {pod}")

        def failed(reason: str) -> UnhealthyError:
            log_lines = [self._keys.mask()(line) for line in last_lines(self._cluster, pod, errors.LOG_LINES)]
            reason = f"{version} started, but did not pass: {reason}"
            return errors.unhealthy(
                "aks", reason, log_lines, "check the model; what served before, if anything, still serves"
            )

        with forwarded(self._cluster, pod, PORT) as url:
            endpoint = Endpoint(url, self._keys.key_for(version))
            verify_candidate(self._verify_endpoint, endpoint, self._packages.find(version.package_sha256), failed)

    def _candidate(self) -> Rollout:
        return Rollout(self._cluster, self._tracks.name(CANDIDATE), self._keys.mask())

    def _replace_stable(self, replacement: Replacement) -> None:
        """Replace the pods that serve, one by one, and put the version before back when that fails."""
        version, before = replacement.version, self._tracks.read()
        body = deployment(self._settings, version.serving_now(), STABLE, replacement.previous)
        applied = self._with_minimum(self._cluster.apply(body, force=self._aks.take_over))
        self._progress(f"rolling {version} out")
        try:
            self._wait_for_stable(applied, str(version))
            self._exposure.wait_for_endpoints(self._leads_to_new_pods())
        except BaseException:
            self._put_back(before)
            raise
        self._progress(f"{version} serves")

    def _leads_to_new_pods(self) -> Callable[[set[str]], bool]:
        """Accept Endpoints without pods of the version before. A canary's pods may be there, too."""
        new, canary = pod_names(self._stable().pods()), f"{self._tracks.name(CANARY)}-"
        return lambda pods: bool(pods) and all(pod.startswith(canary) for pod in pods - new)

    def _restore(self, _: Step) -> None:
        """Complete the rollout of a killed deployment, or bring back pods that are gone.

        A rollout that cannot be completed is undone, as the killed deployment would have done it.
        """
        before = self._tracks.read()
        assert before is not None
        version = str(read_version(before))
        self._progress(f"waiting until all pods hold {version}")
        try:
            self._wait_for_stable(self._with_minimum(before), version)
        except BaseException:
            if is_half_way(before):
                self._put_back(before)
            raise

    def _with_minimum(self, stable: Object) -> Object:
        """Scale up to AKS_MIN_REPLICAS: the autoscaler leaves a Deployment alone that has no pods."""
        least = self._aks.min_replicas
        if stable["spec"].get("replicas", 1) >= least:
            return stable
        self._cluster.scale(stable["metadata"]["name"], least)
        return {**stable, "spec": {**stable["spec"], "replicas": least}}

    def _wait_for_stable(self, stable: Object, version: str) -> None:
        self._stable().wait(version, timeout_for(stable, self._aks), self._progress)

    def _stable(self) -> Rollout:
        return Rollout(self._cluster, self._tracks.name(STABLE), self._keys.mask())

    def _put_back(self, before: Object | None) -> None:
        """Apply the Deployment as it was. Its pods were never all replaced, so this is quick."""
        self._progress("going back to the version before")
        current, previous = serving_versions(before)
        if current is None:
            self._tracks.delete(STABLE)
        else:
            self._cluster.apply(deployment(self._settings, current, STABLE, previous), force=True)
