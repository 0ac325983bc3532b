"""Read what the docker target holds: status, keys, logs, and what a deployment would need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_service.common import keys as key_file
from ml_service.common.errors import nothing_deployed
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.errors import MlopsError
from ml_service.images.engine import BUILD_LABEL, MODEL_LABEL, PACKAGE_LABEL, VERSION_LABEL, engine
from ml_service.ports import Endpoint, Finding, Keys, Status
from ml_service.targets.docker.containers import (
    DIGEST_LABEL,
    OPTIONS_LABEL,
    Deployment,
    Snapshot,
    log_lines,
    open_deployment,
)
from ml_service.targets.docker.log_file import LogFile

_TARGET_NAME = "docker"


class Reader:
    """Answers questions about the target and changes nothing. Keys, packages and logs are below ``home``."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self._settings = settings
        self._docker = settings.docker
        self.packages = PackageStore(home / "packages")
        self.keys_path = home / "secrets" / "keys.json"
        self.log_file = LogFile(home / "logs" / "docker.log", self.mask)

    def status(self) -> Status | None:
        """Return the status that the port promises, or None when nothing is deployed."""
        with open_deployment(self._settings) as deployment:
            snapshot = deployment.read()
        if snapshot.current is None:
            return None
        container, previous = snapshot.container(snapshot.current), snapshot.container(snapshot.previous)
        labels = container.labels if container else {}
        sha256 = labels.get(PACKAGE_LABEL, "")
        return Status(
            target=_TARGET_NAME,
            url=self._url(),
            model=_model(container) or {"name": "", "version": ""},
            build_id=labels.get(BUILD_LABEL, ""),
            package=str(self.packages.path(sha256)),
            package_sha256=sha256,
            image_digest=labels.get(DIGEST_LABEL) or None,
            since=snapshot.current["since"],
            previous=_model(previous),
            state=trouble(snapshot) or "serving",
        )

    def endpoint(self) -> Endpoint:
        """Return the public address, with a key where the version that serves asks for one.

        Raises:
            UsageError: nothing is deployed.
        """
        with open_deployment(self._settings) as deployment:
            snapshot = deployment.read()
            container = snapshot.container(snapshot.current)
        if snapshot.current is None:
            raise nothing_deployed(_TARGET_NAME)
        return Endpoint(self._url(), self.key(container))

    def _url(self) -> str:
        host = "127.0.0.1" if self._docker.bind == "0.0.0.0" else self._docker.bind
        return f"http://{host}:{self._docker.port}"

    def keys(self) -> Keys:
        """Return the two keys.

        Raises:
            UsageError: nothing is deployed.
            IntegrityError: the file of the keys is missing or damaged.
        """
        if self.status() is None:
            raise nothing_deployed(_TARGET_NAME)
        return self._read_keys()

    def key(self, container: Any | None) -> str:
        """Return a key that opens the version in ``container``; empty when it runs with ``SCORING_AUTH=off``."""
        options = json.loads(container.labels.get(OPTIONS_LABEL) or "{}") if container else {}
        return self._read_keys().primary if requires_key(options) else ""

    def mask(self, line: str) -> str:
        """Return a log line with both keys hidden."""
        return key_file.masking(self._read_keys)(line) if self.keys_path.exists() else line

    def _read_keys(self) -> Keys:
        return key_file.read(self.keys_path, "run: inv undeploy --target docker, then deploy again")

    def logs(self, lines: int) -> Sequence[str]:
        """Return the last ``lines`` lines: of containers that are stopped or gone, then of the one that serves."""
        if lines <= 0:
            return []
        with open_deployment(self._settings) as deployment:
            snapshot = deployment.read()
            container = snapshot.container(snapshot.current)
            newest = self.log_lines(container, lines) if container else []
        return (self.log_file.lines() + newest)[-lines:]

    def log_lines(self, container: Any, lines: int) -> list[str]:
        """Return a container's last log lines with keys hidden."""
        return [self.mask(line) for line in log_lines(container, lines)]

    def diagnose(self) -> Sequence[Finding]:
        """Check the engine, and what is deployed on it."""
        try:
            with engine(self._settings.env) as client:
                version = client.version()["Version"]
                snapshot = Deployment(client, self._settings).read()
        except MlopsError as error:
            return [Finding("container engine", False, error.what, error.next_step)]
        problem = trouble(snapshot) if snapshot.current else ""
        return [
            Finding("container engine", True, f"version {version}"),
            Finding("docker deployment", not problem, problem or "as it should be", "run: inv deploy --target docker"),
        ]


def trouble(snapshot: Snapshot) -> str:
    """Return why the deployed version does not serve; empty when it does."""
    again = "inv deploy --target docker starts it again"
    if snapshot.proxy is None or snapshot.proxy.status != "running":
        return f"stopped: its proxy does not run; {again}"
    container = snapshot.container(snapshot.current)
    if container is None:
        return f"stopped: its container was removed from the engine; {again}"
    if container.status != "running":
        return f"{container.status}: its container does not run; {again}"
    health = container.attrs["State"].get("Health", {}).get("Status", "")
    return "unhealthy: it does not answer its health check" if health == "unhealthy" else ""


def _model(container: Any | None) -> dict[str, str] | None:
    if container is None:
        return None
    return {"name": container.labels[MODEL_LABEL], "version": container.labels[VERSION_LABEL]}
