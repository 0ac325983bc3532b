"""Finding and withdrawing model versions."""

from __future__ import annotations

import pytest

from ml_service.errors import (
    UsageError,
)
from ml_service.workflows import registry
from tests.support.workflow_env import WorkflowEnv

pytestmark = pytest.mark.slow


def test_withdrawing_needs_a_reason(env: WorkflowEnv) -> None:
    """It is kept with the version."""
    env.train("1")
    with pytest.raises(UsageError, match="--reason"):
        env.withdraw("mean_regression:1", " ")
    env.withdraw("mean_regression:1", "bad data")
    assert env.platform.version("mean_regression", "1").withdrawn == "bad data"
    assert "champion: none" in env.said


@pytest.mark.parametrize("reference", ["mean_regression", "mean_regression:", ":1", "mean_regression:one", "a'b:1", ""])
def test_what_names_no_model_is_refused(env: WorkflowEnv, reference: str) -> None:
    """NAME:VERSION or champion."""
    with pytest.raises(UsageError, match="NAME:VERSION"):
        registry.find_version(env.settings("1"), env.platform, reference)


def test_the_champion_can_be_asked_for_by_that_word(env: WorkflowEnv) -> None:
    """When there is one."""
    with pytest.raises(UsageError, match="no champion yet"):
        registry.find_version(env.settings("1"), env.platform, "champion")
    env.train("1")
    assert registry.find_version(env.settings("1"), env.platform, "champion").version == "1"
