"""Run containers on the engine of this machine, where Azure would run them on its hosts."""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulators.wire.account import Json
from emulators.wire.http import HttpError


@dataclass
class Container:
    """One container to be run: image, environment, the files mounted into it by directory."""

    name: str
    image: str
    environment: Mapping[str, str]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Pod:
    """Containers that share one address. The first one owns it."""

    def __init__(self, containers: Mapping[str, Any], only_port: int | None) -> None:
        self.containers = containers
        self._only_port = only_port
        self._ports: dict[int, int] = {}

    def port(self, inside: int | None) -> int | None:
        """Return the port of this machine for a port of the containers, or None when it is not published."""
        wanted = inside or self._only_port or 0
        if wanted not in self._ports:
            first = next(iter(self.containers.values()))
            with suppress(Exception):
                first.reload()
                self._ports[wanted] = int(first.ports[f"{wanted}/tcp"][0]["HostPort"])
        return self._ports.get(wanted)

    def states(self) -> dict[str, Json]:
        """Return each container's state as the engine reports it."""
        states = {}
        for name, container in self.containers.items():
            container.reload()
            states[name] = {**container.attrs["State"], "RestartCount": container.attrs["RestartCount"]}
        return states

    def log(self, name: str, lines: int) -> str:
        """Return the last lines that one container logged."""
        raw: bytes = self.containers[name].logs(tail=lines)
        return raw.decode("utf-8", "replace")

    def start(self) -> None:
        for container in self.containers.values():
            container.start()
        self._ports.clear()

    def stop(self) -> None:
        for container in reversed(list(self.containers.values())):
            container.stop(timeout=10)

    def remove(self) -> None:
        for container in reversed(list(self.containers.values())):
            with suppress(Exception):
                container.remove(force=True)


class Engine:
    """Runs pods. ``registries`` maps an emulated registry's host name to the real one that holds its images."""

    def __init__(self, folder: Path) -> None:
        self.registries: dict[str, str] = {}
        self._folder = folder
        self._owner = f"azure-emulator-{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._client: Any = None

    def run(self, containers: Sequence[Container], ports: Sequence[int], *, restart: bool) -> Pod:
        """Start the containers, all on one address.

        Raises:
            HttpError: an image cannot be pulled, or there is no container engine.
        """
        images = [self._pull(container.image) for container in containers]
        started: dict[str, Any] = {}
        for container, image in zip(containers, images, strict=True):
            first = next(iter(started.values()), None)
            published: Json = {"ports": {f"{port}/tcp": ("127.0.0.1", None) for port in ports}}
            network: Json = {"network_mode": f"container:{first.id}"} if first else published
            started[container.name] = self._docker().containers.run(
                image,
                detach=True,
                environment=dict(container.environment),
                labels={"emulator": self._owner},
                restart_policy={"Name": "always"} if restart else None,
                volumes=self._volumes(container),
                **network,
            )
        return Pod(started, ports[0] if ports else None)

    def _volumes(self, container: Container) -> Json:
        mounted = {}
        for path, files in container.files.items():
            folder = self._folder / "volumes" / secrets.token_hex(8)
            folder.mkdir(parents=True)
            for name, content in files.items():
                (folder / name).write_bytes(base64.b64decode(content))
            mounted[str(folder)] = {"bind": path, "mode": "ro"}
        return mounted

    def _pull(self, image: str) -> Any:
        import docker

        server, _, rest = image.partition("/")
        real = f"{self.registries[server]}/{rest}" if server in self.registries else image
        try:
            repository, _, digest = real.partition("@")
            if digest:
                with suppress(docker.errors.ImageNotFound):
                    return self._docker().images.get(real)
                return self._docker().images.pull(repository, tag=digest)
            return self._docker().images.get(real)
        except docker.errors.APIError as error:
            why = f"The image '{image}' is not accessible: {error.explanation}"
            raise HttpError(400, "InaccessibleImage", why) from None

    def _docker(self) -> Any:
        import docker

        with self._lock:
            if self._client is None:
                try:
                    self._client = docker.from_env(timeout=120)
                except docker.errors.DockerException as error:
                    why = f"the emulator finds no container engine: {error}"
                    raise HttpError(500, "NoContainerEngine", why) from None
            return self._client

    def remove_all(self) -> None:
        """Remove every container that this emulator started."""
        if self._client is not None:
            for container in self._client.containers.list(all=True, filters={"label": f"emulator={self._owner}"}):
                with suppress(Exception):
                    container.remove(force=True)
            self._client.close()
