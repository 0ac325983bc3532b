"""What package-artifact writes."""

from __future__ import annotations

import subprocess

import pytest

from ml_service import builds
from ml_service.errors import (
    IntegrityError,
    NotRegisteredError,
    UsageError,
)
from tests.support.workflow_env import WorkflowEnv

pytestmark = pytest.mark.slow


def test_by_default_this_builds_model_is_packaged_and_no_other(env: WorkflowEnv) -> None:
    """Not the newest, not the champion."""
    env.train("1", shift=1.0)
    env.train("2")
    assert env.package("1").model["version"] == "1"
    assert env.package("2").model["version"] == "2"


def test_a_build_that_registered_nothing_packages_nothing(env: WorkflowEnv) -> None:
    """Another build's model is never handed over; the artifact before stays."""
    env.train("1")
    before = env.package("1")
    env.train("2", shift=1.0)
    with pytest.raises(NotRegisteredError, match="--model champion"):
        env.package("2")
    assert (env.root / "artifact" / "model.json").exists()
    assert before.package_sha256 == env.package("1").package_sha256


def test_a_build_that_ran_no_training_is_a_mistake_and_no_rejected_model(env: WorkflowEnv) -> None:
    """A build id that nobody knows is most likely misspelt."""
    env.train("1")
    with pytest.raises(UsageError, match="build 11 ran no training"):
        env.package("11")


def test_the_champion_is_packaged_with_todays_scoring_code(env: WorkflowEnv) -> None:
    """A fix to scoring ships without a better model."""
    env.train("1")
    before = env.package("1")
    (env.root / "scoring" / "score.py").write_text("# fixed\n")
    after = env.package("2", model="champion")
    assert after.model["version"] == "1"
    assert after.package_sha256 != before.package_sha256
    assert (after.package / "scoring" / "score.py").read_text() == "# fixed\n"


def test_the_artifact_tells_the_commit_of_its_scoring_code_from_that_of_the_training(env: WorkflowEnv) -> None:
    """They differ after a redeploy; outside a repository there is none to tell."""
    env.train("1")
    assert env.package("1").model["packaging_commit"] == ""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "scoring"], ["commit", "--quiet", "-m", "newer"]):
        subprocess.run(["git", *identity, *arguments], cwd=env.root, check=True)
    model = env.package("2", model="champion").model
    assert model["packaging_commit"] == builds.git_commit(env.root) != model["tags"]["git_commit"]


def test_a_withdrawn_model_is_not_packaged(env: WorkflowEnv) -> None:
    """Neither by name nor as the build's."""
    env.train("1")
    env.withdraw("mean_regression:1")
    with pytest.raises(UsageError, match="is withdrawn: bad data"):
        env.package("1", model="mean_regression:1")
    with pytest.raises(NotRegisteredError):
        env.package("1")


def test_a_directory_that_holds_something_else_is_left_alone(env: WorkflowEnv) -> None:
    """``--output .`` must not cost the repository."""
    env.train("1")
    with pytest.raises(UsageError, match="choose another --output"):
        env.package("1", output="scoring")
    assert (env.root / "scoring" / "score.py").exists()


def test_a_damaged_version_is_not_packaged(env: WorkflowEnv) -> None:
    """Exit code 8, and no artifact appears, not even a part."""
    env.train("1")
    version = env.platform.version("mean_regression", "1")
    (env.platform.stored(version) / "model" / "mean.json").write_text("0")
    with pytest.raises(IntegrityError, match="mean.json was changed"):
        env.package("1")
    assert [path.name for path in env.root.iterdir() if "artifact" in path.name or path.name[:3] == ".mo"] == []
