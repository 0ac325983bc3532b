"""Perform the steps of a plan on the local target, through its supervisor."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from ml_service.common import keys as key_file
from ml_service.common.errors import unhealthy
from ml_service.common.package_store import PackageStore
from ml_service.common.plan import perform
from ml_service.common.verify import verify_candidate
from ml_service.config import Settings
from ml_service.errors import IntegrityError, MlopsError, UnavailableError, UnhealthyError
from ml_service.ports import Action, Endpoint, Progress, Release, Step, Verify
from ml_service.targets.local.planner import Candidate
from ml_service.targets.local.port import is_chosen, port_for
from ml_service.targets.local.reader import Reader
from ml_service.targets.local.state import LOOPBACK, Paths, Version
from ml_service.targets.local.supervisor_client import (
    CommandRefused,
    SupervisorClient,
    SupervisorGone,
    connect_or_start,
    no_supervisor,
)

_WHERE = "target local"


class Executor:
    """One change of the target. The caller holds the deployment lock.

    All steps from ``start`` on share one conversation with the supervisor, which owns the candidate: when a step fails,
    or this process dies, the supervisor removes a candidate that has no traffic yet. From ``switch`` on the new version
    stays.

    Two things are done beyond the printed steps, both below the target's own directory: the endpoint's keys are
    generated at the first deployment, and packages that no version needs are removed.
    """

    def __init__(self, settings: Settings, paths: Paths, reader: Reader, progress: Progress) -> None:
        self._settings = settings
        self._local = settings.local
        self._paths = paths
        self._packages = PackageStore(paths.packages)
        self._reader = reader
        self._progress = progress
        self._conversation: SupervisorClient | None = None
        self._candidate_url = ""

    def perform(self, steps: Sequence[Step], release: Release | None, verify: Verify) -> None:
        """Perform the steps. ``release`` is None when they bring back the version before.

        Raises:
            UnhealthyError: the candidate did not come up or did not pass.
            IntegrityError: a package is not what its hash says.
            UnavailableError: the port is in use, the disk is full, or the supervisor ended.
        """
        self._forget_packages()
        try:
            perform(
                steps,
                {
                    Action.COPY: lambda step: self._copy(release),
                    Action.START: self._start,
                    Action.VERIFY: lambda step: self._verify(step.detail, verify),
                    Action.SWITCH: self._switch,
                    Action.STOP: self._stop,
                },
            )
        except BaseException as error:
            self._discard_candidate()
            if isinstance(error, CommandRefused):
                raise self._translated(error, _version_of(steps)) from None
            if isinstance(error, SupervisorGone):
                raise UnavailableError(
                    f"its supervisor went away ({error})", where=_WHERE, next_step="run the command again"
                ) from None
            raise
        self._end_conversation()
        self._forget_packages()

    def undeploy(self) -> None:
        """Stop the service and its supervisor, and remove everything but the logs."""
        with suppress(SupervisorGone), SupervisorClient(self._paths.control) as supervisor:
            self._progress("stopping the service")
            supervisor.ask("undeploy", drain_timeout=self._local.drain_timeout, progress=self._progress)
        with no_supervisor(self._paths):
            for path in self._paths.directory.iterdir():
                if path.is_dir() and path != self._paths.logs:
                    shutil.rmtree(path)
                elif path.is_file() or path.is_socket():
                    path.unlink()

    # The steps, in their order.

    def _copy(self, release: Release | None) -> None:
        assert release is not None
        self._progress(f"copying the package of {release.model_name} version {release.model_version}")
        self._packages.add(release)

    def _start(self, step: Step) -> None:
        version = step.detail.version
        key_file.make(self._paths.keys)
        self._conversation = connect_or_start(self._paths, self._settings.env, self._progress)
        self._progress(f"starting {version} beside what serves")
        port = self._local.port and port_for(self._settings, self._reader.read().state)
        try:
            self._candidate_url = self._start_on(port, version)
        except CommandRefused as refused:
            if refused.kind != "port" or is_chosen(self._settings):
                raise
            self._progress(f"port {port} is in use by another program: the service takes a free one")
            self._candidate_url = self._start_on(0, version)

    def _start_on(self, port: int, version: Version) -> str:
        """Have the supervisor start the version and own the public ``port``; return the candidate's private address."""
        answer = self._supervisor.ask(
            "start",
            progress=self._progress,
            deployed=asdict(version),
            port=port,
            startup_timeout=self._local.startup_timeout,
            drain_timeout=self._local.drain_timeout,
        )
        return str(answer["url"])

    def _verify(self, candidate: Candidate, verify: Verify) -> None:
        version, supervisor = candidate.version, self._supervisor
        self._progress(f"{version} is healthy; verifying it on {self._candidate_url}")

        def failed(reason: str) -> UnhealthyError:
            return self._unhealthy(f"{version} was up, but did not pass: {reason}", supervisor.ask("said")["log"])

        endpoint = Endpoint(self._candidate_url, self._reader.key(version))
        verify_candidate(verify, endpoint, self._packages.path(version.package_sha256), failed)

    def _switch(self, step: Step) -> None:
        self._supervisor.ask("switch", forget=step.detail.is_rollback)
        self._progress(f"{step.detail.version} has the traffic; the version before ends what it works on")

    def _stop(self, _step: Step) -> None:
        """Wait until the supervisor has drained and stopped the version before, which it does by itself."""
        self._supervisor.ask("settle", progress=self._progress)

    # The candidate and the files.

    @property
    def _supervisor(self) -> SupervisorClient:
        assert self._conversation is not None, "a plan starts a version before it does anything else with it"
        return self._conversation

    def _end_conversation(self) -> None:
        if self._conversation is not None:
            self._conversation.close()

    def _discard_candidate(self) -> None:
        """Have the supervisor remove the candidate, and wait until it has."""
        if self._conversation is None:
            return
        self._end_conversation()
        with suppress(SupervisorGone, CommandRefused), SupervisorClient(self._paths.control) as supervisor:
            supervisor.ask("discard")

    def _forget_packages(self) -> None:
        state = self._reader.read().state
        self._packages.keep_only({version.package_sha256 for version in (state.current, state.previous) if version})

    # Errors.

    def _translated(self, refused: CommandRefused, version: Version) -> MlopsError:
        if refused.kind == "port":
            port = self._local.port
            return UnavailableError(
                f"the port is not available: {refused.message}",
                where=f"{LOOPBACK}:{port}",
                next_step=f"stop what listens there, or set LOCAL_PORT={port % 65535 + 1} (0: any free port)",
            )
        if refused.kind == "unhealthy":
            return self._unhealthy(f"{version} did not come up: {refused.message}", refused.log)
        if refused.kind == "integrity":
            return IntegrityError(refused.message, where=_WHERE, next_step="run: inv deploy --target local")
        return UnavailableError(refused.message, where=_WHERE, next_step="free what it names, and run it again")

    def _unhealthy(self, reason: str, log_lines: Sequence[str]) -> UnhealthyError:
        current = self._reader.read().state.current
        serving = f"{current} still serves" if current else "nothing serves"
        return unhealthy("local", reason, log_lines, f"{serving}; see: inv logs --target local")


def _version_of(steps: Sequence[Step]) -> Version:
    """Return the version that the steps start."""
    version: Version = next(step.detail.version for step in steps if step.action is Action.START)
    return version
