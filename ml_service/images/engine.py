"""Reach the container engine through the docker SDK, and translate its refusals into MlopsErrors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ml_service.errors import ConfigurationError, UnavailableError

if TYPE_CHECKING:
    import docker

PACKAGE_LABEL = "mlops.package-sha256"
BUILD_LABEL = "mlops.build-id"
MODEL_LABEL = "org.opencontainers.image.title"
VERSION_LABEL = "org.opencontainers.image.version"
TRAINING_LABEL = "mlops.training-commit"
REVISION_LABEL = "org.opencontainers.image.revision"

_TIMEOUT = 300
"""Seconds without a byte from the engine: a step of a build may be silent while it works."""


class NoEngineError(UnavailableError):
    """No container engine answers here."""


@contextmanager
def engine(env: Mapping[str, str]) -> Iterator[docker.DockerClient]:
    """Yield a client of the engine that ``env`` names (``DOCKER_HOST``), or of the one on the usual socket.

    Raises:
        ConfigurationError: the SDK is not installed.
        NoEngineError: nothing answers.
        UnavailableError: the engine went away, or refused something, inside the block.
    """
    client = connect(env)
    try:
        with translated("the container engine"):
            yield client
    finally:
        client.close()


def connect(env: Mapping[str, str]) -> docker.DockerClient:
    """Return a client as ``engine`` yields it; the caller closes it.

    Raises:
        ConfigurationError: the SDK is not installed.
        NoEngineError: nothing answers.
    """
    try:
        import docker
    except ImportError:
        raise ConfigurationError(
            "the package docker is not installed", where="docker", next_step="run: make setup (requirements/ci.txt)"
        ) from None
    import requests

    address = env.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        client = docker.DockerClient.from_env(environment=dict(env), timeout=_TIMEOUT)
        client.ping()
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise NoEngineError(
            f"no container engine answers ({_first_line(error)})",
            where=address,
            next_step="start Docker, or set DOCKER_HOST to where it listens",
        ) from None
    return client


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise UnavailableError, naming ``where``, when the engine refuses something or goes away inside the block."""
    import docker
    import requests
    import urllib3

    try:
        yield
    except docker.errors.APIError as error:
        raise UnavailableError(
            f"refused: {error.explanation or error}", where=where, next_step="see the engine's own message above"
        ) from None
    except (
        docker.errors.DockerException,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        ConnectionError,
    ) as error:
        raise UnavailableError(
            f"went away in the middle ({_first_line(error)})",
            where=where,
            next_step="restart the engine and retry; the previous version keeps serving or comes back with the engine",
        ) from None


def find_image(client: docker.DockerClient, package_sha256: str) -> Any | None:
    """Return an image of this engine whose label is the package hash, or None."""
    images = client.images.list(filters={"label": f"{PACKAGE_LABEL}={package_sha256}"})
    return images[0] if images else None


def repo_digest(image: Any, repository: str) -> str | None:
    """Return the digest of ``image`` in ``repository``, or None when it was neither pushed there nor pulled from it."""
    prefix = f"{repository}@"
    return next((name.removeprefix(prefix) for name in image.attrs["RepoDigests"] if name.startswith(prefix)), None)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
