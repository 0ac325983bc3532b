"""The target on a container engine: a proxy owns the port, one container holds a version. See docs/containers.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ml_service.common.configured import is_configured
from ml_service.common.errors import no_canary, nothing_deployed
from ml_service.common.lock import deployment_lock
from ml_service.common.plan import is_due
from ml_service.config import Settings
from ml_service.images import signing
from ml_service.ports import Endpoint, Finding, Keys, Plan, Progress, Release, Status, Verify
from ml_service.targets.docker.containers import Deployment, open_deployment
from ml_service.targets.docker.executor import Executor
from ml_service.targets.docker.planner import Planner
from ml_service.targets.docker.reader import Reader


class DockerTarget:
    """The Target port on a container engine. State is on the engine; keys, packages and logs are in MLOPS_HOME.

    One version serves here, so there is no canary.
    """

    name = "docker"
    needs_image = True
    needs_registry = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._docker = settings.docker
        self._home = settings.home / "targets" / "docker" / self._docker.name
        self._reader = Reader(settings, self._home)
        self._planner = Planner(settings)

    def is_configured(self) -> bool:
        """See ``ports.Target``."""
        return is_configured(self._settings, self.name)

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See ``ports.Target``."""
        if canary_percent is not None:
            raise no_canary(self.name, "--canary")
        signing.check(self._settings, release)
        with open_deployment(self._settings) as deployment:
            return Plan(self.name, release, self._planner.steps(release, deployment, deployment.read()))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``."""
        if plan.steps:
            signing.check(self._settings, plan.release)
            with self._changing(progress) as deployment:
                snapshot = deployment.read()
                if is_due(plan, self._planner.steps(plan.release, deployment, snapshot), progress):
                    executor = Executor(self._settings, deployment, snapshot, self._reader, progress)
                    executor.perform(plan.steps, self._planner.options(), verify)
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See ``ports.Target``. There is no key when the service was deployed with ``SCORING_AUTH=off``."""
        return self._reader.endpoint()

    def status(self) -> Status | None:
        """See ``ports.Target``."""
        return self._reader.status()

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``. The container of the version before was kept stopped, and starts again."""
        with self._changing(progress) as deployment:
            snapshot = deployment.read()
            executor = Executor(self._settings, deployment, snapshot, self._reader, progress)
            executor.perform(self._planner.rollback_steps(snapshot), {}, verify)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See ``ports.Target``. There is never a canary here."""
        raise no_canary(self.name, "inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See ``ports.Target``."""
        with self._changing(progress) as deployment:
            Executor(self._settings, deployment, deployment.read(), self._reader, progress).undeploy()

    def logs(self, lines: int) -> Sequence[str]:
        """See ``ports.Target``. The logs outlive ``undeploy``."""
        return self._reader.logs(lines)

    def keys(self) -> Keys:
        """See ``ports.Target``."""
        return self._reader.keys()

    def diagnose(self) -> Sequence[Finding]:
        """See ``ports.Target``."""
        return self._reader.diagnose()

    def _serving(self) -> Status:
        if (status := self.status()) is None:
            raise nothing_deployed(self.name)
        return status

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[Deployment]:
        """Make one change at a time, across processes of this MLOPS_HOME; another one is refused by its labels."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        longest = self._docker.startup_timeout + self._docker.drain_timeout
        with deployment_lock(self._home.with_name(f"{self._home.name}.lock"), progress, longest_deployment=longest):
            with open_deployment(self._settings) as deployment:
                yield deployment
