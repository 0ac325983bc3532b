"""The adapters that the contract of the Platform port is held against. Add one: a class like these, and its line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import pytest

from ml_service.config import Settings
from ml_service.platforms import open_platform
from ml_service.ports import ModelVersion, Platform
from tests.support.fake_platform import FakePlatform
from tests.support.repositories import PROJECT, make_repository


class Rig(Protocol):
    """One adapter on a fresh, empty store, beside a repository with the project ``mean_regression``."""

    root: Path

    def open(self) -> Platform:
        """Another view of the same store, as another task has it."""

    def damage(self, version: ModelVersion) -> None:
        """Change a file of a registered version behind the adapter's back."""

    def unreachable(self) -> Platform | None:
        """The adapter when its service is down; None when it has none."""

    def close(self) -> None:
        """Stop what the rig started."""


class FakeRig:
    """The fake: one object, since its store is its memory."""

    def __init__(self, directory: Path) -> None:
        self.root = make_repository(directory / "repository")
        self._platform = FakePlatform(directory / "store")

    def open(self) -> Platform:
        return self._platform

    def damage(self, version: ModelVersion) -> None:
        (self._platform.stored(version) / "model" / "mean.json").write_text("0.125")

    def unreachable(self) -> None:
        return None

    def close(self) -> None:
        pass


class LocalRig:
    """This machine: processes, and MLflow on SQLite."""

    def __init__(self, directory: Path) -> None:
        self.root = make_repository(directory / "repository")

    def open(self) -> Platform:
        return open_platform(self.settings({}))

    def settings(self, env: Mapping[str, str]) -> Settings:
        """The settings of a task in the rig's repository."""
        return Settings.from_env({**os.environ, "MLFLOW_TRACKING_URI": "", **env}, self.root, project=PROJECT)

    def damage(self, version: ModelVersion) -> None:
        run = self.settings({}).store / "artifacts" / version.tags["mlflow_run_id"]
        (damaged,) = run.rglob("mean.json")
        damaged.write_text("0.125")

    def unreachable(self) -> Platform:
        # Port 9 (discard) is below what a test may listen on, so nothing answers there.
        return open_platform(self.settings({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}))

    def close(self) -> None:
        pass


class AzureMlRig:
    """An Azure ML workspace: the real azureml-sdk against the emulator."""

    def __init__(self, directory: Path) -> None:
        if find_spec("azureml") is None:
            pytest.skip("azureml-sdk is not installed: see docs/azure-ml.md")
        from tests.support.rigs import azureml

        emulator = azureml.shared_emulator()
        self._redirected = azureml.redirected(emulator.redirection())
        self._redirected.__enter__()
        self._rig = azureml.AzureMlRig(directory, emulator)
        self.root = self._rig.root

    def open(self) -> Platform:
        return self._rig.open()

    def damage(self, version: ModelVersion) -> None:
        self._rig.damage(version)

    def unreachable(self) -> Platform:
        from tests.support.rigs.azureml import Unreachable

        return Unreachable(self._rig.platform._settings)

    def close(self) -> None:
        self._redirected.__exit__(None, None, None)


RIGS: dict[str, type[FakeRig] | type[LocalRig] | type[AzureMlRig]] = {
    "fake": FakeRig,
    "local": LocalRig,
    "azureml": AzureMlRig,
}
