"""What the docker target keeps on the engine: the front, its network and volume, and one container for each version."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_service.config import DockerSettings, Settings
from ml_service.errors import IntegrityError, UnavailableError, UsageError
from ml_service.images import registry
from ml_service.images.engine import BUILD_LABEL, MODEL_LABEL, PACKAGE_LABEL, VERSION_LABEL, find_image
from ml_service.ports import Progress, Release

if TYPE_CHECKING:
    from docker import DockerClient

OWNER_LABEL = "mlops.target"
HOME_LABEL = "mlops.home"
ROLE_LABEL = "mlops.role"
OPTIONS_LABEL = "mlops.options"
DIGEST_LABEL = "mlops.image-digest"

PORT = "8080/tcp"
KEYS = "/run/secrets/keys.json"
CONTROL = ["python", "-m", "ml_service.targets.docker.proxy_container", "ask"]
_COMMAND_PATIENCE = 10.0
"""Seconds that a command of an interrupted task may still take in the front."""
_HARDENED: Mapping[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "rw,noexec,nosuid,size=64m"},
    "pids_limit": 512,
    "init": True,
}


@dataclass(frozen=True)
class View:
    """What is on the engine now. ``current`` and ``previous`` are ``{"container", "since"}`` or None."""

    front: Any | None
    current: Mapping[str, str] | None
    previous: Mapping[str, str] | None
    containers: Mapping[str, Any]

    def container(self, entry: Mapping[str, str] | None) -> Any | None:
        """The container that ``entry`` names, if it is still there."""
        return self.containers.get(entry["container"]) if entry else None


class Deployment:
    """The containers of one deployment, on one engine."""

    def __init__(self, client: DockerClient, settings: Settings) -> None:
        self._client = client
        self._all_settings = settings
        self._settings = settings.docker
        self._home = settings.home

    @property
    def _name(self) -> str:
        return self._settings.name

    def look(self) -> View:
        """Read what is there.

        Raises:
            UsageError: it belongs to another MLOPS_HOME.
        """
        found: dict[str, Any] = {str(container.name): container for container in self._containers()}
        front = found.pop(f"{self._name}-front", None)
        for container in (*found.values(), *([front] if front else [])):
            self._refuse_foreign(container)
        route = _route(front)
        return View(front, route["current"], route["previous"], found)

    def _containers(self) -> list[Any]:
        return list(self._client.containers.list(all=True, filters={"label": f"{OWNER_LABEL}={self._name}"}))

    def _refuse_foreign(self, container: Any) -> None:
        home = container.labels.get(HOME_LABEL)
        if home != str(self._home):
            raise UsageError(
                f"{container.name} was deployed from another MLOPS_HOME: {home}",
                where="target docker",
                next_step="use that MLOPS_HOME, or choose another DOCKER_NAME and DOCKER_PORT",
            )

    def image_of(self, release: Release, progress: Progress, *, pull: bool) -> Any:
        """The image of the release, which must carry its package hash; with ``pull`` the registry is asked, too.

        A release with a digest is that image and no other; None when only the registry may have it. One without, never
        pushed, is the image of its package on this engine.

        Raises:
            UsageError: there is none.
            UnavailableError: the registry does not give what the digest names.
            IntegrityError: what the digest names is the image of another package.
        """
        image = self._by_digest(release, progress, pull) if release.image_digest else self._by_label(release)
        if image is not None and image.labels.get(PACKAGE_LABEL) != release.package_sha256:
            raise IntegrityError(
                f"is the image of package {str(image.labels.get(PACKAGE_LABEL))[:12]}, not of this one",
                where=f"{release.image}@{release.image_digest}",
                next_step="build it again: inv build-image --push",
            )
        return image

    def _by_label(self, release: Release) -> Any:
        image = find_image(self._client, release.package_sha256)
        if image is None:
            raise UsageError(
                f"this engine has no image of package {release.package_sha256[:12]}, and it was never pushed",
                where="target docker",
                next_step="run: inv build-image",
            )
        return image

    def _by_digest(self, release: Release, progress: Progress, pull: bool) -> Any | None:
        import docker

        try:
            return self._client.images.get(f"{release.image}@{release.image_digest}")
        except docker.errors.ImageNotFound:
            if not pull:
                return None
        registry.sign_in(self._client, self._all_settings, release.image)
        progress(f"pulling {release.image}@{release.image_digest[:19]}")
        try:
            return self._client.images.pull(release.image, tag=release.image_digest)
        except docker.errors.NotFound:
            # Another image of the same package may be here; it is not the one that was pushed, and perhaps signed.
            raise UnavailableError(
                f"the registry no longer has {release.image_digest[:19]}",
                where=release.image,
                next_step="push it again: inv build-image --push",
            ) from None
        except docker.errors.APIError as error:
            raise UnavailableError(
                f"cannot be pulled: {error.explanation or error}",
                where=release.image,
                next_step="check the registry and docker login; or build it here: inv build-image",
            ) from None

    def create(self, release: Release, image: Any, options: Mapping[str, str], keys: Path) -> Any:
        """A container of the release, not started. It restarts by itself only once it serves."""
        settings = self._settings
        return self._client.containers.create(
            image.id,
            name=f"{self._name}-{release.package_sha256[:8]}-{secrets.token_hex(3)}",
            labels={
                **self._labels("version"),
                MODEL_LABEL: release.model_name,
                VERSION_LABEL: release.model_version,
                BUILD_LABEL: release.build_id,
                PACKAGE_LABEL: release.package_sha256,
                DIGEST_LABEL: release.image_digest,
                OPTIONS_LABEL: options_label(settings, options),
            },
            environment={**options, "SCORING_KEYS_FILE": KEYS, "SCORING_HOST": "0.0.0.0", "SCORING_PORT": "8080"},
            volumes={str(keys): {"bind": KEYS, "mode": "ro"}},
            network=self._network(),
            ports={PORT: ("127.0.0.1", 0)},
            mem_limit=f"{settings.memory}m",
            nano_cpus=int(settings.cpus * 1e9),
            log_config=_logging(),
            **_HARDENED,
        )

    def ensure_front(self, view: View, image: str) -> Any:
        """A running front; one that is there already is kept, since replacing it would close connections."""
        import docker

        front = view.front or self._create_front(image)
        self._refuse_moved(front)
        try:
            front.start()
        except docker.errors.APIError as error:
            if view.front is None:
                front.remove(force=True)
            raise UnavailableError(
                f"the port cannot be had: {error.explanation or error}",
                where=f"{self._settings.bind}:{self._settings.port}",
                next_step="stop what listens there, or set DOCKER_PORT to another",
            ) from None
        return front

    def _create_front(self, image: str) -> Any:
        settings = self._settings
        # A front that was removed by hand left its route behind: nothing serves, so nothing may be found there.
        self._remove(self._client.volumes, f"{self._name}-state")
        return self._client.containers.create(
            image,
            name=f"{self._name}-front",
            labels=self._labels("front"),
            volumes={f"{self._name}-state": {"bind": "/state", "mode": "rw"}},
            network=self._network(),
            ports={PORT: (settings.bind, settings.port)},
            restart_policy=_restarting(),
            mem_limit="512m",
            log_config=_logging(),
            **_HARDENED,
        )

    def _refuse_moved(self, front: Any) -> None:
        bound = front.attrs["HostConfig"]["PortBindings"][PORT][0]
        wanted = (self._settings.bind, str(self._settings.port))
        if (bound["HostIp"], bound["HostPort"]) != wanted:
            raise UsageError(
                f"it is deployed on {bound['HostIp']}:{bound['HostPort']}, and {':'.join(wanted)} is asked for",
                where="target docker",
                next_step="set DOCKER_BIND and DOCKER_PORT back, or first: inv undeploy --target docker",
            )

    def switch(self, front: Any, expect: Mapping[str, str] | None, route: Mapping[str, Any]) -> None:
        """Move the traffic, unless somebody else did so meanwhile."""
        said = self._ask(front, {"command": "switch", "expect": expect and expect["container"], **route})
        if "error" in said:
            raise UnavailableError(
                f"another deployment was faster: {said['error']}", where="target docker", next_step="run it again"
            )

    def has_the_traffic(self, container: Any) -> bool:
        """Whether the front routes to ``container`` now, whatever became of the command that should have told it to."""
        current = self.look().current
        return current is not None and current["container"] == container.name

    def drain(self, front: Any, container: str) -> bool:
        """Wait until nothing is on its way through ``container``; False when something still is."""
        timeout = self._settings.drain_timeout
        return bool(self._ask(front, {"command": "drain", "container": container, "timeout": timeout})["drained"])

    def _ask(self, front: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        code, output = self._run(front, [*CONTROL, json.dumps(command)])
        if code != 0:
            said = (output[1] or b"").decode("utf-8", "replace").strip().splitlines()
            raise UnavailableError(
                f"the front does not answer: {said[-1] if said else f'code {code}'}",
                where=f"container {front.name}",
                next_step=f"see: docker logs {front.name}; then run the command again",
            )
        answer: dict[str, Any] = json.loads(output[0] or b"")
        return answer

    def _run(self, front: Any, command: Sequence[str]) -> tuple[int | None, Any]:
        """Run a command in the front.

        An interrupt does not end the command; this waits for its end, so that who looks then sees what it did.
        """
        api = self._client.api
        started = api.exec_create(front.id, list(command))["Id"]
        try:
            output = api.exec_start(started, demux=True)
        except BaseException:
            deadline = time.monotonic() + _COMMAND_PATIENCE
            while api.exec_inspect(started)["ExitCode"] is None and time.monotonic() < deadline:
                time.sleep(0.05)
            raise
        return api.exec_inspect(started)["ExitCode"], output

    def remove_all(self) -> None:
        """Remove the front, its network and volume."""
        for container in self._containers():
            container.stop(timeout=max(1, int(self._settings.drain_timeout)))
            container.remove(force=True)
        self._remove(self._client.networks, self._name)
        self._remove(self._client.volumes, f"{self._name}-state")

    @staticmethod
    def _remove(kind: Any, name: str) -> None:
        import docker

        with suppress(docker.errors.NotFound):
            kind.get(name).remove()

    def _network(self) -> str:
        if not self._client.networks.list(names=[f"^{self._name}$"]):
            self._client.networks.create(self._name, labels={OWNER_LABEL: self._name})
        return self._name

    def _labels(self, role: str) -> dict[str, str]:
        return {OWNER_LABEL: self._name, HOME_LABEL: str(self._home), ROLE_LABEL: role}


def options_label(settings: DockerSettings, options: Mapping[str, str]) -> str:
    """How a version runs, as one comparable text."""
    return json.dumps({**options, "memory": settings.memory, "cpus": settings.cpus}, sort_keys=True)


def log_lines(container: Any, lines: int) -> Sequence[str]:
    """The last that a container said since it was last started, oldest first; nothing when it never was."""
    started = container.attrs["State"].get("StartedAt", "")
    raw = container.logs(tail=lines, since=_epoch(started) or None) if lines > 0 else b""
    return raw.decode("utf-8", "replace").splitlines()[-lines:] if lines > 0 else []


def _epoch(started: str) -> int:
    from datetime import UTC, datetime

    if not started or started.startswith("0001"):
        return 0
    return int(datetime.strptime(started[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())


def _restarting() -> Any:
    return {"Name": "unless-stopped"}


def _logging() -> Any:
    import docker

    return docker.types.LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"})


def _route(front: Any | None) -> dict[str, Any]:
    """What the front routes to, read from its volume, whether it runs or not."""
    import docker

    nothing = {"current": None, "previous": None}
    if front is None:
        return nothing
    try:
        chunks, _ = front.get_archive("/state/route.json")
    except docker.errors.NotFound:
        return nothing
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        file = archive.extractfile("route.json")
        assert file is not None
        route: dict[str, Any] = json.load(file)
        return route
