"""Rigs of the fakes: they keep the same promises as the adapters that they stand for."""

from __future__ import annotations

from pathlib import Path

from ml_service.ports import ModelVersion, Platform, Target
from tests.support.fake_platform import FakePlatform
from tests.support.fake_target import FakeTarget
from tests.support.repositories import make_repository
from tests.support.rigs.base import PlatformRig, TargetRig


class FakeTargetRig(TargetRig):
    """One object, since the fake's state is its memory."""

    def __init__(self, directory: Path) -> None:
        self._fake = FakeTarget()
        self.target = self._fake

    def open(self) -> Target:
        return self.target

    def close(self) -> None:
        self._fake.close()


class FakePlatformRig(PlatformRig):
    """One object, since the fake's store is its memory."""

    marks = ()

    def __init__(self, directory: Path) -> None:
        self.root = make_repository(directory / "repository")
        self._platform = FakePlatform(directory / "store")

    def open(self) -> Platform:
        return self._platform

    def damage(self, version: ModelVersion) -> None:
        (self._platform.stored(version) / "model" / "mean.json").write_text("0.125")
