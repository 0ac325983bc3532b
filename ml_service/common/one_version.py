"""The order of reading, planning and changing on targets where one version serves at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from ml_service.common.configured import is_configured
from ml_service.common.errors import no_canary, nothing_deployed
from ml_service.common.plan import is_due
from ml_service.config import Settings
from ml_service.ports import Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify

S = TypeVar("S")
"""The target at one moment, as a planner compares it with a release."""
S_contra = TypeVar("S_contra", contravariant=True)


class Reader(Protocol):
    """Looks at the target, and changes nothing: methods of ``ports.Target``."""

    def status(self) -> Status | None: ...
    def endpoint(self) -> Endpoint: ...
    def keys(self) -> Keys: ...
    def logs(self, lines: int) -> Sequence[str]: ...
    def diagnose(self) -> Sequence[Finding]: ...


class Planner(Protocol[S_contra]):
    """Compares the target with what it shall be, and changes nothing."""

    def steps(self, release: Release, snapshot: S_contra, /) -> list[Step]: ...
    def rollback_steps(self, snapshot: S_contra, /) -> list[Step]: ...


class Executor(Protocol):
    """Makes one change. A step that fails takes back those before it."""

    def perform(self, steps: Sequence[Step], release: Release | None, verify: Verify) -> None:
        """Perform the steps. ``release`` is None when they bring back a version that the target has."""

    def undeploy(self) -> None:
        """Remove everything that the target holds except its logs."""


class OneVersionTarget(ABC, Generic[S]):
    """The ``Target`` port by a reader, a planner and an executor; there is no canary."""

    name: str
    needs_image: bool
    needs_registry: bool

    def __init__(self, settings: Settings, planner: Planner[S], reader: Reader) -> None:
        self._settings = settings
        self._planner = planner
        self._reader = reader

    def is_configured(self) -> bool:
        """See ``ports.Target``."""
        return is_configured(self._settings, self.name)

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See ``ports.Target``."""
        if canary_percent is not None:
            raise no_canary(self.name, "--canary")
        self._check(release)
        with self._reading() as snapshot:
            return Plan(self.name, release, self._planner.steps(release, snapshot))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``."""
        if plan.steps:
            self._check(plan.release)
            with self._changing(progress) as (snapshot, executor):
                if is_due(plan, self._planner.steps(plan.release, snapshot), progress):
                    executor.perform(plan.steps, plan.release, verify)
        return self._serving()

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See ``ports.Target``."""
        with self._changing(progress) as (snapshot, executor):
            executor.perform(self._planner.rollback_steps(snapshot), None, verify)
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See ``ports.Target``. There is never a canary here."""
        raise no_canary(self.name, "inv promote")

    def undeploy(self, progress: Progress) -> None:
        """See ``ports.Target``."""
        with self._changing(progress) as (_, executor):
            executor.undeploy()

    def status(self) -> Status | None:
        """See ``ports.Target``."""
        return self._reader.status()

    def endpoint(self) -> Endpoint:
        """See ``ports.Target``. There is no key when the service was deployed with ``SCORING_AUTH=off``."""
        return self._reader.endpoint()

    def keys(self) -> Keys:
        """See ``ports.Target``."""
        return self._reader.keys()

    def logs(self, lines: int) -> Sequence[str]:
        """See ``ports.Target``."""
        return self._reader.logs(lines)

    def diagnose(self) -> Sequence[Finding]:
        """See ``ports.Target``."""
        return self._reader.diagnose()

    def _check(self, release: Release) -> None:
        """Refuse a release, or settings, before anything is asked of the target."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[S]:
        """Read what the target holds, to plan from; a plan takes no lock."""

    @abstractmethod
    def _changing(self, progress: Progress) -> AbstractContextManager[tuple[S, Executor]]:
        """Hold the target's lock for one change; the block gets what was read since, and what makes the change."""

    def _serving(self) -> Status:
        if (status := self.status()) is None:
            raise nothing_deployed(self.name)
        return status
