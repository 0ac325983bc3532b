"""Findings, and errors of an environment in which nothing was done yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ml_service.errors import (
    ConfigurationError,
    MlopsError,
)
from ml_service.ports import (
    Finding,
)
from ml_service.workflows import doctor
from tests.support.fake_platform import FakePlatform
from tests.support.workflow_env import WorkflowEnv


class Sick(FakePlatform):
    """A platform with a finding."""

    def diagnose(self) -> list[Finding]:
        return [Finding("disk", False, "1 MiB free", "make room")]


def test_doctor_counts_what_needs_attention(env: WorkflowEnv, tmp_path: Path) -> None:
    """Each finding with its next step; when all is fine it says so and passes."""
    doctor.doctor(env.platform, [env.target], env.console)
    assert "ok   fake: fake target: always there" in env.said
    with pytest.raises(ConfigurationError, match="1 of 2 findings need attention"):
        doctor.doctor(Sick(tmp_path / "sick"), [env.target], env.console)
    assert "FAIL fake: disk: 1 MiB free\n     next: make room\n" in env.said


@pytest.mark.parametrize(
    "call",
    [
        lambda env: env.package("1"),
        lambda env: env.check("1"),
        lambda env: env.deploy(),
        lambda env: env.withdraw("mean_regression:1"),
    ],
)
def test_every_error_of_an_empty_store_says_where_and_why(
    env: WorkflowEnv, call: Callable[[WorkflowEnv], object]
) -> None:
    """Nothing fails with a bare exception."""
    with pytest.raises(MlopsError) as caught:
        call(env)
    assert caught.value.where
    assert caught.value.what
