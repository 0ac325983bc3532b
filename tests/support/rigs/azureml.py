"""The rig of the Azure ML adapter: one emulator a test process, one workspace a test."""

from __future__ import annotations

import atexit
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from emulators import Emulator
from emulators.azureml.world import Workspace
from ml_service.config import Settings
from ml_service.platforms.azureml_v1.platform import AzureMlPlatform
from ml_service.ports import Build, ModelVersion, Platform, PublishedPipeline, Run
from tests.support.repositories import PROJECT, definition, make_repository, write_data
from tests.support.rigs.base import PlatformRig

LOCK = "numpy==2.0.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n    # via x\n"
_NUMBERS = itertools.count(1)


@cache
def shared_emulator() -> Emulator:
    """Return the emulator of this process. Its steps are forks of a process with the SDK."""
    emulator = Emulator(warm=True)
    emulator.start()
    atexit.register(emulator.stop)
    return emulator


@contextmanager
def redirected(environment: Mapping[str, str]) -> Iterator[None]:
    """Direct the SDK to the emulator, and shorten its pauses before a retry."""
    short_pauses = {
        "AZUREML_DEFAULT_BACKOFF": "1",
        "AZUREML_DEFAULT_503_BACKOFF": "1",
        "AZUREML_DEFAULT_500_BACKOFF": "1",
    }
    with mock.patch.dict(os.environ, {**short_pauses, **environment}):
        os.environ.pop("SSL_CERT_DIR", None)
        yield


class AzureMlRig(PlatformRig):
    """A repository with one small project, a workspace of its own, and the adapter between them."""

    def __init__(self, directory: Path, emulator: Emulator, **settings: str) -> None:
        self.emulator = emulator
        self.root = make_repository(directory / "repository")
        (self.root / "requirements" / "azureml.txt").write_text(LOCK)
        self.data = self.root / "data" / "mean.csv"
        self.workspace_name = f"test-{next(_NUMBERS)}"
        self.env = {**emulator.settings(self.workspace_name), **settings}
        self.platform = self.open()

    def open(self, **settings: str) -> AzureMlPlatform:
        """Return an adapter on the workspace, with some settings changed."""
        env = {**self.env, **settings}
        return AzureMlPlatform(Settings.from_env(env, self.root, platform="azureml", project=PROJECT))

    @property
    def workspace(self) -> Workspace:
        """The workspace as the emulator holds it."""
        return self.emulator.world.workspace(self.workspace_name)

    def write_data(self, *values: object) -> Path:
        """Write other data: one row for each value."""
        return write_data(self.root, values)

    def publish(
        self, build_id: str, *, evaluate: bool = True, cancel: bool = True, **parameters: Any
    ) -> PublishedPipeline:
        """Publish the project with these parameters: ``shift`` makes it worse, ``seconds`` slower."""
        frozen = definition(self.root, run_evaluation=evaluate, allow_run_cancel=cancel, **parameters)
        return self.platform.publish(frozen, build(build_id))

    def submit(self, build_id: str, **options: Any) -> Run:
        """Publish and submit."""
        return self.platform.submit(self.publish(build_id, **options), build(build_id), self.data)

    def train(self, build_id: str, **options: Any) -> Run:
        """Publish, submit, wait for the end."""
        return self.platform.wait(self.submit(build_id, **options), lambda line: None)

    def damage(self, version: ModelVersion) -> None:
        workspace = self.workspace
        asset = workspace.assets[workspace.models[version.id]["url"].removeprefix("aml://asset/")]
        folder = self.emulator.folder / "blobs" / workspace.account / "azureml" / asset["artifacts"][0]["prefix"]
        (folder / "model" / "mean.json").write_text("0.125")

    def unreachable(self) -> Platform:
        return Unreachable(self.platform._settings)


class RedirectedAzureMlRig(AzureMlRig):
    """The rig of the contract suite: the SDK is directed to the emulator for as long as the rig is open."""

    def __init__(self, directory: Path) -> None:
        if find_spec("azureml") is None:
            pytest.skip("azureml-sdk is not installed: see docs/azure-ml.md")
        emulator = shared_emulator()
        self._redirected = redirected(emulator.redirection())
        self._redirected.__enter__()
        super().__init__(directory, emulator)

    def close(self) -> None:
        self._redirected.__exit__(None, None, None)


class Unreachable(AzureMlPlatform):
    """The adapter when nothing answers: its requests go to a port on which no server listens."""

    def champion(self, model_name: str) -> ModelVersion | None:
        closed_port = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
        with redirected(closed_port):
            return super().champion(model_name)


def build(build_id: str) -> Build:
    return Build(build_id, f"https://dev.azure.com/build/{build_id}", "0" * 40)
