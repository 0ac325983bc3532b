"""The target on a Kubernetes cluster: rolling updates by server-side apply, and canaries. See docs/aks.md."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ml_service.common.configured import is_configured
from ml_service.common.package_store import PackageStore
from ml_service.common.plan import due_steps
from ml_service.config import Settings
from ml_service.errors import MlopsError, UsageError
from ml_service.images import signing
from ml_service.ports import Endpoint, Finding, Keys, Plan, Progress, Release, Status, Verify
from ml_service.targets.aks import canary_metrics, credentials, lease, permissions
from ml_service.targets.aks.canary import is_ready
from ml_service.targets.aks.client import Cluster
from ml_service.targets.aks.deployment import CANARY, Version, read_version
from ml_service.targets.aks.executor import Executor
from ml_service.targets.aks.ingress import Exposure
from ml_service.targets.aks.objects import KeySecret, SupportingObjects
from ml_service.targets.aks.planner import Planner
from ml_service.targets.aks.reader import Reader
from ml_service.targets.aks.tracks import Tracks


class AksTarget:
    """The Target port on Kubernetes. All state is in the cluster; MLOPS_HOME keeps copies of packages for smoke."""

    name = "aks"
    needs_image = True
    needs_registry = True

    def __init__(self, settings: Settings, cluster: Cluster | None = None) -> None:
        self._settings = settings
        self._connected = cluster
        self._packages = PackageStore(settings.home / "targets" / "aks" / settings.aks.name / "packages")

    @functools.cached_property
    def _cluster(self) -> Cluster:
        return self._connected or credentials.connect(self._settings)

    @property
    def _planner(self) -> Planner:
        return Planner(self._cluster, self._settings)

    @property
    def _reader(self) -> Reader:
        return Reader(self._cluster, self._settings, self._packages)

    def is_configured(self) -> bool:
        """See ``ports.Target``."""
        return is_configured(self._settings, self.name, "KUBECONFIG")

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See Target 1. The server computes what would change (dry run), and who else owns a field."""
        signing.check(self._settings, release)
        wanted = Version.of(release, self._settings)
        return Plan(self.name, release, self._planner.deployment(wanted, canary_percent), canary_percent)

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See Target 2, 3 and 4. Once the lease is held it plans again, as time has passed, and compares."""
        if plan.steps:
            wanted = Version.of(plan.release, self._settings)
            signing.check(self._settings, plan.release)
            with self._lease(progress):
                # With the lease: a deployment that ends removes the packages that nothing on the cluster needs.
                self._packages.add(plan.release)
                now = self._planner.deployment(wanted, plan.canary_percent)
                self._executor(verify, progress).perform(due_steps(plan, now, progress))
                self._packages.keep_only(self._reader.package_hashes())
        return self._reader.status_with_address()

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See Target 5. During a canary it removes the candidate; else it brings back the version before."""
        with self._lease(progress):
            self._executor(verify, progress).perform(self._planner.rollback())
            self._packages.keep_only(self._reader.package_hashes())
        return self._reader.status_with_address()

    def promote(self, progress: Progress) -> Status:
        """See Target 5. The candidate takes all traffic when its metrics are no worse than those of the other one."""
        with self._lease(progress):
            canary = Tracks(self._cluster, self._settings).read(CANARY)
            version = read_version(canary)
            if canary is None or version is None or not is_ready(canary):
                raise UsageError(
                    "there is no canary to promote",
                    where="target aks",
                    next_step="run: inv deploy --target aks --canary 10",
                )
            key = KeySecret(self._cluster, self._settings).key_for(version)
            canary_metrics.judge(self._cluster, self._settings, canary, key, progress)
            self._executor(_verified_before, progress).perform(self._planner.promotion(version))
            self._packages.keep_only(self._reader.package_hashes())
        return self._reader.status_with_address()

    def undeploy(self, progress: Progress) -> None:
        """See Target 6. The logs stay wherever the cluster collects them."""
        cluster, settings = self._cluster, self._settings
        with self._lease(progress):
            progress("removing everything that belongs to the deployment")
            tracks = Tracks(cluster, settings)
            tracks.delete_all()
            SupportingObjects(cluster, settings, Exposure(cluster, settings)).delete()
            KeySecret(cluster, settings).delete()
            tracks.wait_until_gone(progress)
            self._packages.keep_only(())

    def status(self) -> Status | None:
        """See Target 5."""
        return self._reader.status()

    def endpoint(self) -> Endpoint:
        """See Target 7."""
        return self._reader.endpoint()

    def keys(self) -> Keys:
        """See Target 7."""
        return self._reader.keys()

    def logs(self, lines: int) -> Sequence[str]:
        """See Target 7: of all pods by time, each line with its pod."""
        return self._reader.logs(lines)

    def diagnose(self) -> Sequence[Finding]:
        """Check that the cluster answers, which versions it serves, and the rights that a deployment needs."""
        try:
            return self._diagnose()
        except MlopsError as error:
            return [Finding("cluster", False, str(error.what), error.next_step)]

    def _diagnose(self) -> Sequence[Finding]:
        cluster, exposure = self._cluster, Exposure(self._cluster, self._settings)
        versions = [api for api in ("autoscaling/v2", "policy/v1") if cluster.serves(api)]
        weights = exposure.diagnose()
        route = exposure.route if all(finding.ok for finding in weights) else None
        missing = permissions.missing(cluster, *((route.kind, route.namespace) if route else ()))
        return [
            Finding("cluster", True, f"{cluster.address} answers; serves {', '.join(versions) or 'older groups only'}"),
            Finding(
                "rights", not missing, f"missing: {', '.join(missing)}" if missing else "enough", "see docs/aks.md"
            ),
            *weights,
        ]

    def _executor(self, verify: Verify, progress: Progress) -> Executor:
        return Executor(self._cluster, self._settings, self._packages, verify, progress)

    @contextmanager
    def _lease(self, progress: Progress) -> Iterator[None]:
        """Hold the deployment's lease: one change at a time, from any machine."""
        timeout = 3 * self._settings.aks.startup_timeout
        with lease.held(self._cluster, f"{self._settings.aks.name}-deployment", progress, timeout=timeout):
            yield


def _verified_before(*_: object) -> None:
    """Verify nothing: a canary has passed before it got traffic, and since then its metrics are what is judged."""
