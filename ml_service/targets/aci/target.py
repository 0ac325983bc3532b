"""The target on Azure Container Instances: each version is a group with an address of its own. See ADR 0070."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ml_service.azure import errors
from ml_service.azure import lease as azure_lease
from ml_service.common.configured import is_configured
from ml_service.common.errors import no_canary, nothing_deployed
from ml_service.common.package_store import PackageStore
from ml_service.common.plan import is_due
from ml_service.config import Settings
from ml_service.images import signing
from ml_service.ports import Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify
from ml_service.targets.aci.client import Groups, Snapshot
from ml_service.targets.aci.executor import Executor
from ml_service.targets.aci.keys import AciKeys
from ml_service.targets.aci.planner import Planner, refuse_unsafe
from ml_service.targets.aci.reader import Reader


class AciTarget:
    """The Target port on Container Instances. State is in tags there; MLOPS_HOME has packages, and keys without vault.

    The address moves with the version: promise 2 holds for clients that follow ``status`` within ACI_DRAIN_SECONDS. One
    version has the address, so there is no canary.
    """

    name = "aci"
    needs_image = True
    needs_registry = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._aci = settings.aci
        home = settings.home / "targets" / "aci" / settings.aci.name
        self._packages = PackageStore(home / "packages")
        self._groups = Groups(settings)
        self._keys = AciKeys(settings, home / "secrets" / "keys.json")
        self._planner = Planner(settings, self._keys)
        self._reader = Reader(settings, self._groups, self._keys, self._packages)

    def is_configured(self) -> bool:
        """See ``ports.Target``."""
        return is_configured(self._settings, self.name)

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See ``ports.Target``."""
        if canary_percent is not None:
            raise no_canary(self.name, "--canary")
        return Plan(self.name, release, self._steps(release))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``."""
        if plan.steps:
            with self._changing(progress) as confirm_lease:
                if is_due(plan, self._steps(plan.release), progress):
                    executor = self._executor(self._reader.read(), progress)
                    executor.perform(plan.steps, plan.release, verify, confirm_lease)
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See ``ports.Target``. There is no key when the service was deployed with ``SCORING_AUTH=off``."""
        return self._reader.endpoint()

    def status(self) -> Status | None:
        """See ``ports.Target``."""
        return self._reader.status()

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``. The group of the version before was kept stopped, and starts again."""
        with self._changing(progress) as confirm_lease:
            snapshot = self._reader.read()
            steps = self._planner.rollback_steps(snapshot)
            self._executor(snapshot, progress).perform(steps, None, verify, confirm_lease)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See ``ports.Target``. There is never a canary here."""
        raise no_canary(self.name, "inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See ``ports.Target``. Keys in a vault stay there: the name of a deleted secret stays taken."""
        with self._changing(progress):
            self._executor(self._reader.read(), progress).undeploy()

    def logs(self, lines: int) -> Sequence[str]:
        """See ``ports.Target``. Log Analytics, where it is set, keeps the lines of groups that are removed."""
        return self._reader.logs(lines)

    def keys(self) -> Keys:
        """See ``ports.Target``."""
        return self._reader.keys()

    def diagnose(self) -> Sequence[Finding]:
        """See ``ports.Target``."""
        return self._reader.diagnose()

    def _steps(self, release: Release) -> list[Step]:
        signing.check(self._settings, release)
        refuse_unsafe(self._settings)
        return self._planner.steps(release, self._reader.read())

    def _executor(self, snapshot: Snapshot, progress: Progress) -> Executor:
        return Executor(self._settings, self._groups, self._keys, self._packages, self._reader, snapshot, progress)

    def _serving(self) -> Status:
        if (status := self.status()) is None:
            raise nothing_deployed(self.name)
        return status

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[Callable[[], None]]:
        """Make one change at a time, across machines; the block gets a function that confirms the lease."""
        errors.required(self._settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP")
        timeout = 2 * self._aci.startup_timeout + self._aci.drain_seconds
        with azure_lease.held(self._settings, f"aci-{self._aci.name}", progress, timeout) as lease:
            yield lease.confirm
