"""Validating, publishing, training and checking."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_service.errors import (
    DataError,
    NotRegisteredError,
    UsageError,
)
from ml_service.ports import (
    Progress,
    PublishedPipeline,
    Run,
    RunStatus,
)
from ml_service.workflows import training, validation
from tests.support.fake_platform import FakePlatform
from tests.support.repositories import (
    PROJECT,
    write_data,
)
from tests.support.workflow_env import WorkflowEnv

pytestmark = pytest.mark.slow


def test_the_data_is_checked_by_the_project(env: WorkflowEnv) -> None:
    """Its own file, or the one that is named; what is wrong is told in the project's words."""
    validation.validate_data(env.settings("1"), env.console)
    assert "4 rows are fine" in env.said
    with pytest.raises(DataError, match="not a number in column Y"):
        validation.validate_data(env.settings("1"), env.console, str(write_data(env.root, ["text"])))


def test_publish_hands_on_the_pipelines_id(env: WorkflowEnv) -> None:
    """As an output, for the stage that trains."""
    env.publish("1")
    assert env.outputs["pipeline_id"] == env.platform.pipelines(PROJECT, "1")[0].id
    assert env.said.startswith("build 1 (--build-id)\n")


def test_train_registers_the_first_and_says_so(env: WorkflowEnv) -> None:
    """With the verdict's reason."""
    run = env.train("1", shift=1.0)
    assert run.registered == "mean_regression:1"
    assert "verdict: first of its name" in env.said
    assert "registered mean_regression:1" in env.said


def test_a_candidate_that_is_not_better_is_no_error(env: WorkflowEnv) -> None:
    """The run ends as canceled, and the sentence that scripts look for is printed."""
    env.train("1")
    run = env.train("2", shift=1.0)
    assert (run.status, run.registered) == (RunStatus.CANCELED, "")
    assert "ended as canceled. Model was not registered for this run." in env.said


def test_a_run_may_complete_without_registering(env: WorkflowEnv) -> None:
    """ALLOW_RUN_CANCEL=false, for platforms where a canceled run looks like a fault."""
    env.train("1")
    run = env.train("2", shift=1.0, ALLOW_RUN_CANCEL="false")
    assert (run.status, run.registered) == (RunStatus.COMPLETED, "")


def test_evaluation_may_be_turned_off(env: WorkflowEnv) -> None:
    """RUN_EVALUATION=false registers whatever was trained."""
    env.train("1")
    assert env.train("2", shift=1.0, RUN_EVALUATION="false").registered == "mean_regression:2"


def test_train_without_a_published_pipeline_tells_the_next_step(env: WorkflowEnv) -> None:
    """Exit code 2."""
    with pytest.raises(UsageError, match="run: inv publish"):
        training.train(env.settings("1"), env.platform, env.console)


class SeveralPipelines(FakePlatform):
    """A platform on which a build may publish more than once."""

    def pipelines(self, project: str, build_id: str) -> list[PublishedPipeline]:
        return [*super().pipelines(project, "1"), *super().pipelines(project, "2")]


def test_train_with_several_pipelines_asks_for_one(env: WorkflowEnv, tmp_path: Path) -> None:
    """It lists them; the one that is named is run."""
    env.platform = SeveralPipelines(tmp_path / "several")
    env.publish("1")
    env.publish("2")
    first = env.platform.pipelines(PROJECT, "1")[0].id
    with pytest.raises(UsageError, match="mean_regression.1, mean_regression.2") as caught:
        training.train(env.settings("3"), env.platform, env.console)
    assert "--pipeline-id" in caught.value.next_step
    run = training.train(env.settings("3"), env.platform, env.console, pipeline_id=first)
    assert (run.pipeline_id, run.build.id) == (first, "3")


def test_a_run_that_failed_is_raised_as_what_it_was(env: WorkflowEnv) -> None:
    """Rejected data gives exit code 3, and the run is named."""
    write_data(env.root, ["text"])
    with pytest.raises(DataError, match="not a number in column Y") as caught:
        env.train("1")
    assert caught.value.where.startswith("run ")


def test_train_may_return_at_once_and_check_model_takes_it_up(env: WorkflowEnv) -> None:
    """``--no-wait``."""
    env.publish("1")
    run = training.train(env.settings("1"), env.platform, env.console, wait=False)
    assert run.status is RunStatus.RUNNING
    found = env.check("1")
    assert found is not None
    assert found.reference == "mean_regression:1"


class Interrupted(FakePlatform):
    """Somebody presses Ctrl-C while a run is waited for."""

    def wait(self, run: Run, progress: Progress) -> Run:
        raise KeyboardInterrupt

    def cancel(self, run: Run) -> None:
        self._execution(run).canceled.set()
        super().wait(run, lambda line: None)


@pytest.mark.parametrize("confirmed", [True, False])
def test_an_interrupt_cancels_the_run_when_that_is_wanted(env: WorkflowEnv, tmp_path: Path, confirmed: bool) -> None:
    """Otherwise the run goes on, and it is told how to take it up."""
    platform = Interrupted(tmp_path / "interrupted")
    env.platform = platform
    env.publish("1")
    with pytest.raises(KeyboardInterrupt):
        training.train(env.settings("1"), env.platform, env.console, confirm_cancel=lambda: confirmed)
    (run,) = env.platform.runs(PROJECT, "1")
    ended = FakePlatform.wait(platform, run, lambda line: None)
    assert bool(ended.registered) is not confirmed
    assert ("canceling run" in env.said, "goes on: inv check-model" in env.said) == (confirmed, not confirmed)


def test_check_model_names_the_builds_model(env: WorkflowEnv) -> None:
    """As outputs, too."""
    env.train("1")
    env.check("1")
    assert "Model mean_regression:1 was registered for this run." in env.said
    expected = {"model_registered": "true", "model_name": "mean_regression", "model_version": "1"}
    assert expected.items() <= env.outputs.items()


def test_check_model_says_exactly_when_none_was_registered(env: WorkflowEnv) -> None:
    """And fails only when that was asked for, with exit code 7."""
    env.train("1")
    env.train("2", shift=1.0)
    assert env.check("2") is None
    assert "\nModel was not registered for this run.\n" in env.said
    assert env.outputs["model_registered"] == "false"
    with pytest.raises(NotRegisteredError) as caught:
        env.check("2", fail_if_none=True)
    assert caught.value.exit_code == 7


def test_check_model_of_a_build_that_ran_nothing_is_an_error_of_usage(env: WorkflowEnv) -> None:
    """Silence would look like a rejected model."""
    with pytest.raises(UsageError, match="ran no training"):
        env.check("1")


def test_check_model_of_a_run_that_failed_fails_like_it(env: WorkflowEnv) -> None:
    """Not as a rejected model."""
    write_data(env.root, ["text"])
    with pytest.raises(DataError):
        env.train("1")
    with pytest.raises(DataError):
        env.check("1")
