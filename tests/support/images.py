"""Images of the stub server on the engine and in the registry."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_service.images.build import context_of
from ml_service.ports import Release
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from docker import DockerClient

STUB_IMAGE = "test-stub"
"""Repository of the images of the stub server."""


@contextmanager
def removing_images(client: DockerClient, repository: str) -> Iterator[None]:
    """Remove what the block tagged in ``repository``."""
    try:
        yield
    finally:
        for image in client.images.list(name=repository):
            remove_image(client, image)


def remove_image(client: DockerClient, image: Any) -> None:
    """Remove an image by every name it has. An image in use stays."""
    import docker

    try:
        client.images.remove(image.id, force=True)
    except docker.errors.APIError:
        pass


def provide_image(client: DockerClient, directory: Path, package_sha256: str) -> str:
    """Build the image of a package of the stub server unless the engine has it. Return its name."""
    name = f"{STUB_IMAGE}:{package_sha256[:16]}"
    if not client.images.list(name=name):
        context = context_of(directory)
        if not (directory / "scoring" / "Dockerfile").exists():
            with tarfile.open(fileobj=context, mode="a") as archive:
                archive.add(ROOT / "scoring" / "Dockerfile", "scoring/Dockerfile")
            context.seek(0)
        labels = {"mlops.package-sha256": package_sha256}
        client.images.build(
            fileobj=context, custom_context=True, dockerfile="scoring/Dockerfile", tag=name, labels=labels, rm=True
        )
    return name


def push_image(client: DockerClient, release: Release, repository: str) -> Release:
    """Push an image of the release to ``repository``. Return the release with the image's name and digest."""
    image = client.images.get(provide_image(client, release.package, release.package_sha256))
    tag = release.package_sha256[:16]
    image.tag(repository, tag)
    digest = ""
    for event in client.api.push(repository, tag=tag, stream=True, decode=True):
        assert "error" not in event, event
        digest = event.get("aux", {}).get("Digest", digest)
    return replace(release, image=repository, image_digest=digest)
