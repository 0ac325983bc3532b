"""The docker target's objects on the engine: the proxy, its network and volume, and a container for each version.

The proxy owns the public port. Its volume holds ``route.json``, the only record of what serves: a switch is one
replaced file and one pointer in the proxy, made by one command that the engine runs inside the proxy's container. The
command names the version that it expects to replace, so of two deployments one is refused. The task may die at any
moment: the route names a version that is up and verified, and containers that the route does not name are orphans,
which the next deployment removes. See ADR 0041.
"""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_service.config import DockerSettings, Settings
from ml_service.errors import IntegrityError, UnavailableError, UsageError
from ml_service.images import registry
from ml_service.images.engine import BUILD_LABEL, MODEL_LABEL, PACKAGE_LABEL, VERSION_LABEL, engine, find_image
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
_COMMAND_TIMEOUT = 10.0
"""Seconds that a command of an interrupted task may still take in the proxy."""
RESTARTING: Any = {"Name": "unless-stopped"}
_HARDENED: Mapping[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "rw,noexec,nosuid,size=64m"},
    "pids_limit": 512,
    "init": True,
}


@dataclass(frozen=True)
class Snapshot:
    """The engine at one moment. ``current`` and ``previous`` are ``{"container", "since"}`` or None."""

    deployment: Deployment
    proxy: Any | None
    current: Mapping[str, str] | None
    previous: Mapping[str, str] | None
    containers: Mapping[str, Any]

    def container(self, entry: Mapping[str, str] | None) -> Any | None:
        """Return the container that ``entry`` names, or None if it is gone."""
        return self.containers.get(entry["container"]) if entry else None

    @property
    def orphans(self) -> list[Any]:
        """Containers that the route does not name: a deployment that was killed left them."""
        named = {entry["container"] for entry in (self.current, self.previous) if entry}
        return [container for name, container in sorted(self.containers.items()) if name not in named]


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

    def read(self) -> Snapshot:
        """Return what is on the engine.

        Raises:
            UsageError: it belongs to another MLOPS_HOME.
        """
        containers: dict[str, Any] = {str(container.name): container for container in self._containers()}
        for container in containers.values():
            self._refuse_foreign(container)
        proxy = containers.pop(f"{self._name}-front", None)
        route = _route(proxy)
        return Snapshot(self, proxy, route["current"], route["previous"], containers)

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
        """Return the image of the release, which must carry its package hash; with ``pull``, pull a missing one.

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
        """Create a container of the release, and do not start it. The engine restarts it only once it serves."""
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

    def run_proxy(self, existing: Any | None, image: str) -> Any:
        """Return a running proxy: ``existing``, since replacing it would close connections, or a new one of ``image``.

        Raises:
            UnavailableError: its port is in use.
            UsageError: it owns another port than the settings name.
        """
        import docker

        proxy = existing or self._create_proxy(image)
        self._refuse_moved(proxy)
        try:
            proxy.start()
        except docker.errors.APIError as error:
            if existing is None:
                proxy.remove(force=True)
            raise UnavailableError(
                f"the port is not available: {error.explanation or error}",
                where=f"{self._settings.bind}:{self._settings.port}",
                next_step="stop what listens there, or set DOCKER_PORT to another",
            ) from None
        return proxy

    def _create_proxy(self, image: str) -> Any:
        settings = self._settings
        # A proxy that was removed by hand left its route behind. Nothing serves, so the route must not say otherwise.
        self._remove(self._client.volumes, f"{self._name}-state")
        return self._client.containers.create(
            image,
            name=f"{self._name}-front",
            labels=self._labels("front"),
            volumes={f"{self._name}-state": {"bind": "/state", "mode": "rw"}},
            network=self._network(),
            ports={PORT: (settings.bind, settings.port)},
            restart_policy=RESTARTING,
            mem_limit="512m",
            log_config=_logging(),
            **_HARDENED,
        )

    def _refuse_moved(self, proxy: Any) -> None:
        bound = proxy.attrs["HostConfig"]["PortBindings"][PORT][0]
        wanted = (self._settings.bind, str(self._settings.port))
        if (bound["HostIp"], bound["HostPort"]) != wanted:
            raise UsageError(
                f"it is deployed on {bound['HostIp']}:{bound['HostPort']}, and {':'.join(wanted)} is asked for",
                where="target docker",
                next_step="set DOCKER_BIND and DOCKER_PORT back, or first: inv undeploy --target docker",
            )

    def switch(self, proxy: Any, expect: Mapping[str, str] | None, route: Mapping[str, Any]) -> None:
        """Move the traffic to ``route``, if ``expect`` still has it.

        Raises:
            UnavailableError: another deployment moved it meanwhile.
        """
        response = self._send(proxy, {"command": "switch", "expect": expect and expect["container"], **route})
        if "error" in response:
            raise UnavailableError(
                f"another deployment was faster: {response['error']}", where="target docker", next_step="run it again"
            )

    def has_the_traffic(self, container: Any) -> bool:
        """Return whether the proxy routes to ``container`` now, whatever became of the command to switch."""
        current = self.read().current
        return current is not None and current["container"] == container.name

    def drain(self, proxy: Any, container: str) -> bool:
        """Wait until ``container`` has answered its requests; return False if it has not in time."""
        timeout = self._settings.drain_timeout
        return bool(self._send(proxy, {"command": "drain", "container": container, "timeout": timeout})["drained"])

    def _send(self, proxy: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        # A proxy of an older deployment has its module under an older name, so it is asked by the name that it runs.
        program = proxy.attrs["Config"]["Cmd"][:-1]
        code, output = self._run(proxy, [*program, "ask", json.dumps(command)])
        if code != 0:
            errors = (output[1] or b"").decode("utf-8", "replace").strip().splitlines()
            raise UnavailableError(
                f"the proxy does not answer: {errors[-1] if errors else f'code {code}'}",
                where=f"container {proxy.name}",
                next_step=f"see: docker logs {proxy.name}; then run the command again",
            )
        response: dict[str, Any] = json.loads(output[0] or b"")
        return response

    def _run(self, proxy: Any, command: Sequence[str]) -> tuple[int | None, Any]:
        """Run a command in the proxy's container.

        An interrupt does not end the command. So wait for its end, before anybody decides which version is not needed.
        """
        api = self._client.api
        started = api.exec_create(proxy.id, list(command))["Id"]
        try:
            output = api.exec_start(started, demux=True)
        except BaseException:
            deadline = time.monotonic() + _COMMAND_TIMEOUT
            while api.exec_inspect(started)["ExitCode"] is None and time.monotonic() < deadline:
                time.sleep(0.05)
            raise
        return api.exec_inspect(started)["ExitCode"], output

    def remove_all(self) -> None:
        """Remove every container of the deployment, its network and volume."""
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


@contextmanager
def open_deployment(settings: Settings) -> Iterator[Deployment]:
    """Connect to the engine for as long as the block lasts."""
    with engine(settings.env) as client:
        yield Deployment(client, settings)


def describe(container: Any) -> str:
    """Return the model and version that a container holds, for people."""
    return f"{container.labels[MODEL_LABEL]} version {container.labels[VERSION_LABEL]}"


def options_label(settings: DockerSettings, options: Mapping[str, str]) -> str:
    """Return how a version runs, as one text to compare."""
    return json.dumps({**options, "memory": settings.memory, "cpus": settings.cpus}, sort_keys=True)


def log_lines(container: Any, lines: int) -> Sequence[str]:
    """Return a container's last log lines since it was last started, oldest first."""
    started = container.attrs["State"].get("StartedAt", "")
    raw = container.logs(tail=lines, since=_epoch(started) or None) if lines > 0 else b""
    return raw.decode("utf-8", "replace").splitlines()[-lines:] if lines > 0 else []


def _epoch(started: str) -> int:
    from datetime import UTC, datetime

    if not started or started.startswith("0001"):
        return 0
    return int(datetime.strptime(started[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())


def _logging() -> Any:
    import docker

    return docker.types.LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"})


def _route(proxy: Any | None) -> dict[str, Any]:
    """Return what the proxy routes to, read from its volume, whether it runs or not."""
    import docker

    nothing = {"current": None, "previous": None}
    if proxy is None:
        return nothing
    try:
        chunks, _ = proxy.get_archive("/state/route.json")
    except docker.errors.NotFound:
        return nothing
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        file = archive.extractfile("route.json")
        assert file is not None
        route: dict[str, Any] = json.load(file)
        return route
