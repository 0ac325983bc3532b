"""The target on this machine: a supervised process on loopback. See docs/local-target.md and ADR 0030."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ml_service.common.lock import deployment_lock
from ml_service.common.one_version import OneVersionTarget
from ml_service.config import Settings
from ml_service.errors import UnavailableError
from ml_service.ports import Progress
from ml_service.targets.local.executor import Executor
from ml_service.targets.local.planner import Planner
from ml_service.targets.local.reader import Reader
from ml_service.targets.local.state import Paths, Snapshot


class LocalTarget(OneVersionTarget[Snapshot]):
    """The Target port on this machine. Every method may be called from any process; the supervisor holds the state.

    One process serves here, so there is no canary. The logs outlive ``undeploy``.
    """

    name = "local"
    needs_image = False
    needs_registry = False
    _reader: Reader

    def __init__(self, settings: Settings) -> None:
        self._paths = Paths(settings.home)
        super().__init__(settings, Planner(settings, self._paths), Reader(settings, self._paths))

    def is_configured(self) -> bool:
        """See ``ports.Target``. It needs nothing."""
        return True

    def undeploy(self, progress: Progress) -> None:
        """See ``ports.Target``. It reads nothing, so it also removes what is damaged."""
        if self._paths.directory.exists():
            with self._locked(progress) as executor:
                executor.undeploy()

    @contextmanager
    def _reading(self) -> Iterator[Snapshot]:
        yield self._reader.read()

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[tuple[Snapshot, Executor]]:
        with self._locked(progress) as executor:
            yield self._reader.read(), executor

    @contextmanager
    def _locked(self, progress: Progress) -> Iterator[Executor]:
        """Make one change at a time, across processes. An error of the disk becomes one with a next step."""
        local = self._settings.local
        longest = local.startup_timeout + local.drain_timeout
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
