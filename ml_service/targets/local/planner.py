"""Plan a change of the local target: the steps from what it holds to what it shall hold."""

from __future__ import annotations

from dataclasses import dataclass

from ml_service.common.errors import no_previous_version
from ml_service.config import Settings
from ml_service.config.scoring import server_options
from ml_service.ports import Action, Release, Step
from ml_service.targets.local.port import is_chosen, port_for
from ml_service.targets.local.state import LOOPBACK, Paths, Snapshot, State, Version


@dataclass(frozen=True)
class Candidate:
    """The detail of the steps ``start``, ``verify`` and ``switch``. After a rollback there is no version before."""

    version: Version
    is_rollback: bool = False


class Planner:
    """Compares a snapshot with a release, and changes nothing."""

    def __init__(self, settings: Settings, paths: Paths) -> None:
        self._settings = settings
        self._local = settings.local
        self._paths = paths

    def steps(self, release: Release, snapshot: Snapshot) -> list[Step]:
        """Return the steps that make ``release`` serve; none when it does."""
        version, state = self._version(release), snapshot.state
        if version.same_as(state.current) and self._port(state) in (0, state.port) and not snapshot.trouble:
            return []
        copy = f"the package {release.package_sha256[:12]} to {self._paths.packages}"
        return [Step(Action.COPY, copy), *self._replacing(state, Candidate(version))]

    def rollback_steps(self, snapshot: Snapshot) -> list[Step]:
        """Return the steps that make the version before serve again.

        Raises:
            UsageError: there is none.
        """
        previous = snapshot.state.previous
        if previous is None:
            raise no_previous_version("local")
        return self._replacing(snapshot.state, Candidate(previous, is_rollback=True))

    def _replacing(self, state: State, candidate: Candidate) -> list[Step]:
        version, address = candidate.version, self._address(state)
        steps = [
            Step(Action.START, f"{version} beside what serves, until it is healthy", detail=candidate),
            Step(Action.VERIFY, f"{version} on a private address", detail=candidate),
            Step(Action.SWITCH, f"the traffic of {address} to {version}", detail=candidate),
        ]
        if state.current is not None:
            steps.append(Step(Action.STOP, f"{state.current}, once its requests are answered"))
        return steps

    def _port(self, state: State) -> int:
        return port_for(self._settings, state)

    def _address(self, state: State) -> str:
        port = self._port(state)
        address = f"port {port} of {LOOPBACK}" if port else f"a free port of {LOOPBACK}"
        may_change = port != state.port and not is_chosen(self._settings)
        return f"{address} (or a free one, if that is in use)" if may_change else address

    def _version(self, release: Release) -> Version:
        return Version(
            model={"name": release.model_name, "version": release.model_version},
            build_id=release.build_id,
            package_sha256=release.package_sha256,
            options=server_options(self._settings.env, self._settings.scoring),
        )
