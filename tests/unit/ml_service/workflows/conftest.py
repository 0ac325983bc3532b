"""What the tests of the workflows share: an environment, with a model packaged, and with two versions deployed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_platform import FakePlatform
from tests.support.fake_target import FakeTarget
from tests.support.repositories import (
    make_repository,
)
from tests.support.workflow_env import WorkflowEnv


@pytest.fixture
def env(tmp_path: Path) -> Iterator[WorkflowEnv]:
    with FakeTarget() as target:
        yield WorkflowEnv(
            make_repository(tmp_path / "repository"), FakePlatform(tmp_path / "store"), target, io.StringIO()
        )


@pytest.fixture
def packaged(env: WorkflowEnv) -> WorkflowEnv:
    """A build with its model packaged."""
    env.train("1", shift=1.0)
    env.package("1")
    return env


@pytest.fixture
def deployed(packaged: WorkflowEnv) -> WorkflowEnv:
    """Version 1 serves, and version 2 took over."""
    packaged.deploy()
    packaged.train("2")
    packaged.package("2", output="artifact-2")
    packaged.deploy("artifact-2")
    assert packaged.serving().previous == {"name": "mean_regression", "version": "1"}
    return packaged
