"""Read what the local target holds: status, endpoint, keys and logs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ml_service.common import keys as key_file
from ml_service.common.errors import nothing_deployed
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.ports import Endpoint, Finding, Keys, Status
from ml_service.targets.local import doctor
from ml_service.targets.local.state import LOOPBACK, Paths, Snapshot, State, Version
from ml_service.targets.local.supervisor_client import SupervisorClient, SupervisorGone

_TARGET_NAME = "local"

_STOPPED = "stopped: its supervisor does not run; inv deploy --target local starts it again"


class Reader:
    """Answers questions about the target and changes nothing."""

    def __init__(self, settings: Settings, paths: Paths) -> None:
        self._settings = settings
        self._paths = paths

    def read(self) -> Snapshot:
        """Return the deployed versions and, if nothing serves, the reason.

        The supervisor knows both. If it is not running, its state file has the versions.

        Raises:
            IntegrityError: the state file is damaged.
        """
        with suppress(SupervisorGone), SupervisorClient(self._paths.control) as client:
            answer = client.ask("status")
            return Snapshot(State.of(answer["state"], self._paths.state), answer["trouble"])
        return Snapshot(State.load(self._paths.state), _STOPPED)

    def status(self) -> Status | None:
        """Return the status that the port promises, or None when nothing is deployed."""
        snapshot = self.read()
        state, current = snapshot.state, snapshot.state.current
        if current is None:
            return None
        return Status(
            target=_TARGET_NAME,
            url=_url(state.port),
            model=dict(current.model),
            build_id=current.build_id,
            package=str(self._paths.package(current.package_sha256)),
            package_sha256=current.package_sha256,
            image_digest=None,
            since=current.since,
            previous=dict(state.previous.model) if state.previous else None,
            state=snapshot.trouble or "serving",
        )

    def endpoint(self) -> Endpoint:
        """Return the public address, with a key where the version that serves asks for one.

        Raises:
            UsageError: nothing is deployed.
        """
        state = self.read().state
        if state.current is None:
            raise nothing_deployed(_TARGET_NAME)
        return Endpoint(_url(state.port), self.key(state.current))

    def keys(self) -> Keys:
        """Return the two keys.

        Raises:
            UsageError: nothing is deployed.
            IntegrityError: the file of the keys is damaged.
        """
        if self.read().state.current is None:
            raise nothing_deployed(_TARGET_NAME)
        return self._read_keys()

    def key(self, version: Version) -> str:
        """Return a key that opens ``version``; empty when it runs with ``SCORING_AUTH=off``."""
        return self._read_keys().primary if requires_key(version.options) else ""

    def _read_keys(self) -> Keys:
        return key_file.read(self._paths.keys, "run: inv undeploy --target local")

    def logs(self, lines: int) -> Sequence[str]:
        """Return the last ``lines`` lines of the log and of the files that it was rotated to, oldest first."""
        if lines <= 0:
            return []
        log = self._paths.log
        rotated = sorted(self._paths.logs.glob(f"{log.name}.*"), key=lambda path: int(path.suffix[1:]))
        newest: list[str] = []
        for path in [log, *rotated]:
            if len(newest) < lines and path.exists():
                newest = path.read_text(encoding="utf-8", errors="replace").splitlines() + newest
        return newest[-lines:]

    def diagnose(self) -> Sequence[Finding]:
        """Check what a deployment to this machine needs."""
        return doctor.diagnose(self._settings, self._paths, self.read())


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"
