"""Build the scoring image from an artifact's ``package/`` and nothing else. See docs/containers.md and ADR 0040."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ml_service import package
from ml_service.common.errors import with_log
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.errors import ConfigurationError, UnavailableError, UsageError
from ml_service.images import registry, signing, supply_chain
from ml_service.images.engine import (
    BUILD_LABEL,
    MODEL_LABEL,
    PACKAGE_LABEL,
    REVISION_LABEL,
    TRAINING_LABEL,
    VERSION_LABEL,
    NoEngineError,
    engine,
    find_image,
    repo_digest,
)
from ml_service.package import Artifact
from ml_service.ports import Progress

if TYPE_CHECKING:
    from docker import DockerClient

DOCKERFILE = "scoring/Dockerfile"
IMAGE_JSON = "image.json"


def build(settings: Settings, console: Console, *, artifact: Path, push: bool) -> None:
    """Build the scoring image of ``artifact``, or find it, and write image.json; ``push`` sends it to the registry.

    Without a container engine print that and return, unless REQUIRE_IMAGE is set or ``push`` asks for an image.

    Raises:
        UsageError: there is no artifact, or its package holds no Dockerfile.
        ConfigurationError: ``push`` without a registry.
        UnavailableError: the engine or the registry is missing or refused; the build failed.
        IntegrityError: the artifact is not what was packaged.
    """
    contents = package.read_artifact(artifact)
    _check(settings, contents, push)
    try:
        with engine(settings.env) as client:
            record = _ImageBuilder(settings, client, console).provide(contents, push=push)
            console.progress(supply_chain.write_sbom(client, record, artifact))
    except NoEngineError as error:
        if settings.require_image or push:
            raise
        console.line(f"skipped: {error}")
        console.output("skipped", f"no container engine at {error.where}")
        return
    package.write_json(artifact / IMAGE_JSON, record)
    if push:
        _add_pushed_parts(settings, console, artifact, contents, record)
    name = reference(record)
    console.line(f"image {name}")
    console.output("image", name)
    console.output("look_at", name)


def reference(record: Mapping[str, Any]) -> str:
    """Return the name of the image in an image.json: by digest once it was pushed, else its id."""
    return f"{record['repository']}@{record['digest']}" if record["digest"] else str(record["image_id"])


def _check(settings: Settings, contents: Artifact, push: bool) -> None:
    if not (contents.package / DOCKERFILE).is_file():
        raise UsageError(
            f"the package holds no {DOCKERFILE}", where=str(contents.package), next_step="package the model again"
        )
    if push and not settings.image.registry:
        raise ConfigurationError(
            "there is no registry to push to",
            where="IMAGE_REGISTRY",
            next_step="set it to the name of an Azure Container Registry, or to the host of another one",
        )
    if urlsplit(settings.image.index_url).password:
        raise ConfigurationError(
            "holds a password, which the build would keep",
            where="PIP_INDEX_URL",
            next_step="use an index that this network reaches without one; hashes decide what is installed",
        )


def _add_pushed_parts(
    settings: Settings, console: Console, artifact: Path, contents: Artifact, record: Mapping[str, Any]
) -> None:
    """Add to the artifact what a deployment checks: a report on vulnerabilities, and a signature where a key is set."""
    locks = supply_chain.locks_of(contents.package)
    console.progress(supply_chain.write_vulnerabilities(locks, artifact, settings.env))
    if signing.sign(settings, artifact, record):
        console.progress(f"signed: {signing.SIGNATURE}")


class _ImageBuilder:
    """Provides images of one repository, on one engine and in its registry."""

    def __init__(self, settings: Settings, client: DockerClient, console: Console) -> None:
        self._settings = settings
        self._client = client
        self._progress: Progress = console.progress
        self._repository = registry.repository(settings)

    def provide(self, contents: Artifact, *, push: bool) -> dict[str, Any]:
        """Find or build the image of ``contents``, and return it as image.json describes it."""
        tag = tag_of(contents)
        if push:
            registry.sign_in(self._client, self._settings, self._repository)
        image = self._find(contents, tag, push) or self._build(contents, tag)
        image.tag(self._repository, tag)
        digest = self._push(tag) if push else repo_digest(image, self._repository)
        return {
            "image_id": image.id,
            "repository": self._repository,
            "digest": digest,
            "package_sha256": contents.package_sha256,
            "built_at": _to_seconds(image.attrs["Created"]),
        }

    def _find(self, contents: Artifact, tag: str, push: bool) -> Any | None:
        """Return an image whose label is this package's hash, from the engine or the registry."""
        package_sha256 = contents.package_sha256
        image = find_image(self._client, package_sha256)
        if image is not None:
            self._progress(f"this engine has an image of package {package_sha256[:12]}: {image.short_id}")
            return image
        image = self._pull(tag, push) if self._settings.image.registry else None
        if image is not None and image.labels.get(PACKAGE_LABEL) == package_sha256:
            self._progress(f"the registry has an image of package {package_sha256[:12]}: {image.short_id}")
            return image
        return None

    def _pull(self, tag: str, push: bool) -> Any | None:
        """Return the registry's image of that tag. A refusal ends a push only: a build does not need the registry."""
        import docker

        try:
            return self._client.images.pull(self._repository, tag=tag)
        except (docker.errors.NotFound, docker.errors.ImageNotFound):
            return None
        except docker.errors.APIError as error:
            reason = str(error.explanation or error)
            if push:
                raise _registry_refused(self._repository, reason) from None
            self._progress(f"the registry was not asked for it: {reason}")
            return None

    def _build(self, contents: Artifact, tag: str) -> Any:
        image = self._settings.image
        arguments = {"BASE": image.base, **({"PIP_INDEX_URL": image.index_url} if image.index_url else {})}
        stream = self._client.api.build(
            fileobj=context_of(contents.package),
            custom_context=True,
            dockerfile=DOCKERFILE,
            tag=f"{self._repository}:{tag}",
            labels=labels_of(contents),
            buildargs=arguments,
            network_mode=image.network or None,
            rm=True,
            forcerm=True,
            decode=True,
        )
        follow_build(stream, self._progress)
        return self._client.images.get(f"{self._repository}:{tag}")

    def _push(self, tag: str) -> str:
        """Push the tag, and return the digest that the registry computed."""
        self._progress(f"pushing {self._repository}:{tag}")
        digest = ""
        for event in self._client.api.push(self._repository, tag=tag, stream=True, decode=True):
            if "error" in event:
                raise _registry_refused(self._repository, event["error"])
            digest = event.get("aux", {}).get("Digest", digest)
            if event.get("status") == "Pushed":
                self._progress(f"  layer {event.get('id', '')} pushed")
        if not digest:
            raise _registry_refused(self._repository, "the push ended without a digest")
        return digest


def tag_of(contents: Artifact) -> str:
    """Return the image's tag: the model's version and the package hash, so that no two packages share one."""
    version = re.sub(r"[^A-Za-z0-9_.-]", "-", str(contents.model["version"]))
    return f"v{version[:60]}-{contents.package_sha256[:16]}"


def labels_of(contents: Artifact) -> dict[str, str]:
    """Return the image's labels. Its revision is that of the scoring code, which may be newer than the model."""
    tags = contents.model["tags"]
    return {
        MODEL_LABEL: str(contents.model["name"]),
        VERSION_LABEL: str(contents.model["version"]),
        REVISION_LABEL: str(contents.model.get("packaging_commit", "")),
        TRAINING_LABEL: str(tags.get("git_commit", "")),
        BUILD_LABEL: str(tags.get("build_id", "")),
        PACKAGE_LABEL: contents.package_sha256,
    }


def context_of(directory: Path) -> io.BytesIO:
    """Return a package directory as a build context (tar): equal files give equal bytes, whatever their owner and time.

    The engine's build cache depends on these bytes.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in (*sorted(package.read_manifest(directory).files), package.MANIFEST):
            entry = tarfile.TarInfo(name)
            entry.size = (directory / name).stat().st_size
            entry.mode = 0o644
            with (directory / name).open("rb") as file:
                archive.addfile(entry, file)
    stream.seek(0)
    return stream


def follow_build(events: Iterable[Mapping[str, Any]], progress: Progress) -> None:
    """Show each step of a build.

    Raises:
        UnavailableError: it did not end with an image; with its last log lines.
    """
    log_lines: list[str] = []
    finished = False
    for event in events:
        for line in _lines(event):
            log_lines.append(line)
            if line.startswith("Step "):
                progress(line[:110])
        finished = finished or "ID" in event.get("aux", {})
        if "error" in event:
            raise _build_failed(str(event["error"]), log_lines)
    if not finished:
        raise _build_failed("the engine went away in the middle", log_lines)


def _lines(event: Mapping[str, Any]) -> Iterator[str]:
    return (line for line in str(event.get("stream", "")).splitlines() if line.strip())


def _build_failed(reason: str, log_lines: Sequence[str]) -> UnavailableError:
    return UnavailableError(
        with_log(f"the build failed: {reason}", log_lines),
        where=DOCKERFILE,
        next_step="check that a build can reach the base image (IMAGE_BASE) and the package index, then again",
    )


def _registry_refused(where: str, reason: str) -> UnavailableError:
    return UnavailableError(
        f"the registry refused or cannot be reached: {reason}",
        where=where,
        next_step="check IMAGE_REGISTRY, sign in with docker login (az acr login), then run the command again",
    )


def _to_seconds(created: str) -> str:
    """Return the engine's timestamp without its fraction: ``2026-01-01T00:00:00+00:00``."""
    return datetime.strptime(created[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).isoformat()
