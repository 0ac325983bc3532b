"""The target on a container engine: a proxy owns the port, one container holds a version. See docs/containers.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ml_service.common.lock import deployment_lock
from ml_service.common.one_version import OneVersionTarget
from ml_service.config import Settings
from ml_service.images import signing
from ml_service.ports import Progress, Release
from ml_service.targets.docker.containers import Snapshot, open_deployment
from ml_service.targets.docker.executor import Executor
from ml_service.targets.docker.planner import Planner
from ml_service.targets.docker.reader import Reader


class DockerTarget(OneVersionTarget[Snapshot]):
    """The Target port on a container engine. State is on the engine; keys, packages and logs are in MLOPS_HOME.

    One version serves here, so there is no canary. A rollback starts the container of the version before, which was
    kept stopped. The logs outlive ``undeploy``.
    """

    name = "docker"
    needs_image = True
    needs_registry = False
    _planner: Planner
    _reader: Reader

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home / "targets" / "docker" / settings.docker.name
        super().__init__(settings, Planner(settings), Reader(settings, self._home))

    def _check(self, release: Release) -> None:
        signing.check(self._settings, release)

    @contextmanager
    def _reading(self) -> Iterator[Snapshot]:
        """Keep the connection to the engine while a plan is made: it asks for images, too."""
        with open_deployment(self._settings) as deployment:
            yield deployment.read()

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[tuple[Snapshot, Executor]]:
        """Make one change at a time, across processes of this MLOPS_HOME; another one is refused by its labels."""
        docker = self._settings.docker
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        longest = docker.startup_timeout + docker.drain_timeout
        with deployment_lock(self._home.with_name(f"{self._home.name}.lock"), progress, longest_deployment=longest):
            with self._reading() as snapshot:
                options = self._planner.options()
                yield snapshot, Executor(self._settings, snapshot, options, self._reader, progress)
