"""Rigs of this machine: the local target, and the local platform with MLflow on SQLite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from ml_service.config import LocalSettings, Settings
from ml_service.platforms import open_platform
from ml_service.ports import ModelVersion, Platform, Target
from ml_service.targets import open_target
from tests.support.repositories import PROJECT, make_repository
from tests.support.rigs.base import PlatformRig, TargetRig


class LocalTargetRig(TargetRig):
    """A supervisor on a free port, with a home of its own."""

    marks = (pytest.mark.slow,)

    def __init__(self, directory: Path) -> None:
        self._settings = Settings(
            root=directory,
            home=directory / "home",
            store=directory / "home" / "store",
            local=LocalSettings(port=0, startup_timeout=30, drain_timeout=30),
            env=dict(os.environ),
        )
        self.target = self.open()

    def open(self) -> Target:
        return open_target("local", self._settings)


class LocalPlatformRig(PlatformRig):
    """Runs are processes, and the store is a directory."""

    def __init__(self, directory: Path) -> None:
        self.root = make_repository(directory / "repository")

    def open(self) -> Platform:
        return open_platform(self.settings({}))

    def settings(self, env: Mapping[str, str]) -> Settings:
        """Return the settings of a task in the rig's repository."""
        return Settings.from_env({**os.environ, "MLFLOW_TRACKING_URI": "", **env}, self.root, project=PROJECT)

    def damage(self, version: ModelVersion) -> None:
        run = self.settings({}).store / "artifacts" / version.tags["mlflow_run_id"]
        (damaged,) = run.rglob("mean.json")
        damaged.write_text("0.125")

    def unreachable(self) -> Platform:
        # Port 9 (discard) is below what a test may listen on, so nothing answers there.
        return open_platform(self.settings({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}))
