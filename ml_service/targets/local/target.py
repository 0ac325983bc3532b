"""The target on this machine: a supervised process on loopback. See docs/local-target.md and ADR 0030."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ml_service.common.errors import no_canary, nothing_deployed
from ml_service.common.lock import deployment_lock
from ml_service.common.plan import is_due
from ml_service.config import Settings
from ml_service.errors import UnavailableError
from ml_service.ports import Endpoint, Finding, Keys, Plan, Progress, Release, Status, Verify
from ml_service.targets.local import doctor
from ml_service.targets.local.executor import Executor
from ml_service.targets.local.planner import Planner
from ml_service.targets.local.reader import Reader
from ml_service.targets.local.state import Paths


class LocalTarget:
    """The Target port on this machine. Every method may be called from any process; the supervisor holds the state.

    One process serves here, so there is no canary.
    """

    name = "local"
    needs_image = False
    needs_registry = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = settings.local
        self._paths = Paths(settings.home)
        self._reader = Reader(self._paths)
        self._planner = Planner(settings, self._paths)

    def is_configured(self) -> bool:
        """See ``ports.Target``."""
        return True

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See ``ports.Target``."""
        if canary_percent is not None:
            raise no_canary(self.name, "--canary")
        return Plan(self.name, release, self._planner.steps(release, self._reader.read()))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``."""
        if plan.steps:
            with self._changing(progress) as executor:
                if is_due(plan, self._planner.steps(plan.release, self._reader.read()), progress):
                    executor.perform(plan.steps, verify)
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See ``ports.Target``. There is no key when the service was deployed with ``SCORING_AUTH=off``."""
        return self._reader.endpoint()

    def status(self) -> Status | None:
        """See ``ports.Target``."""
        return self._reader.status()

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``."""
        with self._changing(progress) as executor:
            executor.perform(self._planner.rollback_steps(self._reader.read()), verify)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See ``ports.Target``. There is never a canary here."""
        raise no_canary(self.name, "inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See ``ports.Target``."""
        if self._paths.directory.exists():
            with self._changing(progress) as executor:
                executor.undeploy()

    def logs(self, lines: int) -> Sequence[str]:
        """See ``ports.Target``. The logs outlive ``undeploy``."""
        return self._reader.logs(lines)

    def keys(self) -> Keys:
        """See ``ports.Target``."""
        return self._reader.keys()

    def diagnose(self) -> Sequence[Finding]:
        """See ``ports.Target``."""
        return doctor.diagnose(self._settings, self._paths, self._reader.read())

    def _serving(self) -> Status:
        if (status := self.status()) is None:
            raise nothing_deployed(self.name)
        return status

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[Executor]:
        """Make one change at a time, across processes. An error of the disk becomes one with a next step."""
        longest = self._local.startup_timeout + self._local.drain_timeout
        try:
            self._paths.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._paths.packages.mkdir(exist_ok=True)
            with deployment_lock(self._paths.deploy_lock, progress, longest_deployment=longest):
                yield Executor(self._settings, self._paths, self._reader, progress)
        except OSError as error:
            raise UnavailableError(
                f"{error.strerror or error}",
                where=str(error.filename or self._paths.directory),
                next_step="free space there or make it writable, and run the command again; what served still serves",
            ) from error
