"""The rig of the docker target."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from ml_service.ports import Release
from ml_service.targets.docker.target import DockerTarget
from tests.support.images import provide_image
from tests.support.ports import free_port
from tests.support.rigs.base import TargetRig
from tests.support.services import engine_or_skip
from tests.support.settings import settings_for


class DockerRig(TargetRig):
    """The docker target under a name and on a port of its own, and images of the stub server."""

    marks = (pytest.mark.docker,)

    def __init__(self, directory: Path, **variables: str) -> None:
        self.client = engine_or_skip()
        self.home = directory / "home"
        self.name = f"test-{uuid.uuid4().hex[:10]}"
        self.variables = {"DOCKER_NAME": self.name, "DOCKER_PORT": str(free_port()), **variables}
        self.target = self.open()

    def open(self, **variables: str) -> DockerTarget:
        """Return another object for the same deployment, with other settings if there are any."""
        return DockerTarget(settings_for(self.home, **{**self.variables, **variables}))

    def prepare(self, release: Release) -> Release:
        """Build an image of the release on the engine."""
        provide_image(self.client, release.package, release.package_sha256)
        return release

    def containers(self) -> list[Any]:
        """Return the deployment's containers, including its proxy."""
        return list(self.client.containers.list(all=True, filters={"label": f"mlops.target={self.name}"}))

    def close(self) -> None:
        super().close()
        self.client.close()
