"""A repository with a fake platform and a fake target, for the tests of workflows."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from ml_service.config import Settings
from ml_service.console import Console, read_outputs
from ml_service.package import Artifact
from ml_service.ports import (
    ModelVersion,
    Run,
    Status,
)
from ml_service.workflows import deployment, registry, training
from ml_service.workflows.artifact import package_artifact
from tests.support.fake_platform import FakePlatform
from tests.support.fake_target import FakeTarget
from tests.support.repositories import (
    PROJECT,
    set_parameters,
)


@dataclass
class WorkflowEnv:
    """A repository, a platform, a target, and what was printed."""

    root: Path
    platform: FakePlatform
    target: FakeTarget
    stream: io.StringIO

    def settings(self, build_id: str, **env: str) -> Settings:
        return Settings.from_env(env, self.root, project=PROJECT, build_id=build_id)

    @property
    def console(self) -> Console:
        return Console(self.stream, outputs=self.root / "outputs")

    @property
    def said(self) -> str:
        return self.stream.getvalue()

    @property
    def outputs(self) -> dict[str, str]:
        return read_outputs(self.root / "outputs")

    def publish(self, build_id: str, shift: float = 0.0, **env: str) -> None:
        set_parameters(self.root, shift=shift)
        training.publish(self.settings(build_id, **env), self.platform, self.console)

    def train(self, build_id: str, shift: float = 0.0, **env: str) -> Run:
        self.publish(build_id, shift, **env)
        return training.train(self.settings(build_id, **env), self.platform, self.console)

    def check(self, build_id: str, *, fail_if_none: bool = False) -> ModelVersion | None:
        settings = self.settings(build_id)
        return training.check_model(settings, self.platform, self.console, fail_if_none=fail_if_none)

    def package(self, build_id: str, model: str = "", output: str = "artifact") -> Artifact:
        settings = self.settings(build_id)
        path = self.root / output
        return package_artifact(settings, self.platform, self.console, output=path, model=model)

    def deploy(self, output: str = "artifact", *, dry_run: bool = False) -> None:
        path, settings = self.root / output, self.settings("any")
        deployment.deploy(settings, self.platform, self.target, self.console, artifact=path, dry_run=dry_run)

    def withdraw(self, reference: str, reason: str = "bad data") -> None:
        settings = self.settings("any")
        registry.withdraw(settings, self.platform, self.console, reference=reference, reason=reason)

    def serving(self) -> Status:
        status = self.target.status()
        assert status is not None
        return status
