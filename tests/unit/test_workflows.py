"""The use cases behind the tasks, on a platform and a target that work without services."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ml_service import builds, workflows
from ml_service.config import Settings
from ml_service.console import Console, read_outputs
from ml_service.errors import (
    ConfigurationError,
    DataError,
    IntegrityError,
    MlopsError,
    NotRegisteredError,
    UnavailableError,
    UnhealthyError,
    UsageError,
)
from ml_service.package import Artifact
from ml_service.ports import Finding, Keys, ModelVersion, Progress, PublishedPipeline, Run, RunStatus, Status
from tests.fake_platform import FakePlatform
from tests.fakes import FakeTarget
from tests.repositories import PROJECT, make_repository, set_parameters, write_data


@dataclass
class Desk:
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
        workflows.publish(self.settings(build_id, **env), self.platform, self.console)

    def train(self, build_id: str, shift: float = 0.0, **env: str) -> Run:
        self.publish(build_id, shift, **env)
        return workflows.train(self.settings(build_id, **env), self.platform, self.console)

    def check(self, build_id: str, *, fail_if_none: bool = False) -> ModelVersion | None:
        settings = self.settings(build_id)
        return workflows.check_model(settings, self.platform, self.console, fail_if_none=fail_if_none)

    def package(self, build_id: str, model: str = "", output: str = "artifact") -> Artifact:
        settings = self.settings(build_id)
        path = self.root / output
        return workflows.package_artifact(settings, self.platform, self.console, output=path, model=model)

    def deploy(self, output: str = "artifact", *, dry_run: bool = False) -> None:
        path, settings = self.root / output, self.settings("any")
        workflows.deploy(settings, self.platform, self.target, self.console, artifact=path, dry_run=dry_run)

    def withdraw(self, reference: str, reason: str = "bad data") -> None:
        settings = self.settings("any")
        workflows.withdraw(settings, self.platform, self.console, reference=reference, reason=reason)

    def serving(self) -> Status:
        status = self.target.status()
        assert status is not None
        return status


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with FakeTarget() as target:
        yield Desk(make_repository(tmp_path / "repository"), FakePlatform(tmp_path / "store"), target, io.StringIO())


# Training


def test_the_data_is_checked_by_the_project(desk: Desk) -> None:
    """Its own file, or the one that is named; what is wrong is told in the project's words."""
    workflows.validate_data(desk.settings("1"), desk.console)
    assert "4 rows are fine" in desk.said
    with pytest.raises(DataError, match="not a number in column Y"):
        workflows.validate_data(desk.settings("1"), desk.console, str(write_data(desk.root, ["text"])))


def test_publish_hands_on_the_pipelines_id(desk: Desk) -> None:
    """As an output, for the stage that trains."""
    desk.publish("1")
    assert desk.outputs["pipeline_id"] == desk.platform.pipelines(PROJECT, "1")[0].id
    assert desk.said.startswith("build 1 (--build-id)\n")


def test_train_registers_the_first_and_says_so(desk: Desk) -> None:
    """With the verdict's reason."""
    run = desk.train("1", shift=1.0)
    assert run.registered == "mean_regression:1"
    assert "verdict: first of its name" in desk.said
    assert "registered mean_regression:1" in desk.said


def test_a_candidate_that_is_not_better_is_no_error(desk: Desk) -> None:
    """The run ends as canceled, and the sentence that scripts look for is printed."""
    desk.train("1")
    run = desk.train("2", shift=1.0)
    assert (run.status, run.registered) == (RunStatus.CANCELED, "")
    assert "ended as canceled. Model was not registered for this run." in desk.said


def test_a_run_may_complete_without_registering(desk: Desk) -> None:
    """ALLOW_RUN_CANCEL=false, for platforms where a canceled run looks like a fault."""
    desk.train("1")
    run = desk.train("2", shift=1.0, ALLOW_RUN_CANCEL="false")
    assert (run.status, run.registered) == (RunStatus.COMPLETED, "")


def test_evaluation_may_be_turned_off(desk: Desk) -> None:
    """RUN_EVALUATION=false registers whatever was trained."""
    desk.train("1")
    assert desk.train("2", shift=1.0, RUN_EVALUATION="false").registered == "mean_regression:2"


def test_train_without_a_published_pipeline_tells_the_next_step(desk: Desk) -> None:
    """Exit code 2."""
    with pytest.raises(UsageError, match="run: inv publish"):
        workflows.train(desk.settings("1"), desk.platform, desk.console)


class SeveralPipelines(FakePlatform):
    """A platform on which a build may publish more than once."""

    def pipelines(self, project: str, build_id: str) -> list[PublishedPipeline]:
        return [*super().pipelines(project, "1"), *super().pipelines(project, "2")]


def test_train_with_several_pipelines_asks_for_one(desk: Desk, tmp_path: Path) -> None:
    """It lists them; the one that is named is run."""
    desk.platform = SeveralPipelines(tmp_path / "several")
    desk.publish("1")
    desk.publish("2")
    first = desk.platform.pipelines(PROJECT, "1")[0].id
    with pytest.raises(UsageError, match="mean_regression.1, mean_regression.2") as caught:
        workflows.train(desk.settings("3"), desk.platform, desk.console)
    assert "--pipeline-id" in caught.value.next_step
    run = workflows.train(desk.settings("3"), desk.platform, desk.console, pipeline_id=first)
    assert (run.pipeline_id, run.build.id) == (first, "3")


def test_a_run_that_failed_is_raised_as_what_it_was(desk: Desk) -> None:
    """Rejected data gives exit code 3, and the run is named."""
    write_data(desk.root, ["text"])
    with pytest.raises(DataError, match="not a number in column Y") as caught:
        desk.train("1")
    assert caught.value.where.startswith("run ")


def test_train_may_return_at_once_and_check_model_takes_it_up(desk: Desk) -> None:
    """``--no-wait``."""
    desk.publish("1")
    run = workflows.train(desk.settings("1"), desk.platform, desk.console, wait=False)
    assert run.status is RunStatus.RUNNING
    found = desk.check("1")
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
def test_an_interrupt_cancels_the_run_when_that_is_wanted(desk: Desk, tmp_path: Path, confirmed: bool) -> None:
    """Otherwise the run goes on, and it is told how to take it up."""
    platform = Interrupted(tmp_path / "interrupted")
    desk.platform = platform
    desk.publish("1")
    with pytest.raises(KeyboardInterrupt):
        workflows.train(desk.settings("1"), desk.platform, desk.console, confirm_cancel=lambda: confirmed)
    (run,) = desk.platform.runs(PROJECT, "1")
    ended = FakePlatform.wait(platform, run, lambda line: None)
    assert bool(ended.registered) is not confirmed
    assert ("canceling run" in desk.said, "goes on: inv check-model" in desk.said) == (confirmed, not confirmed)


def test_check_model_names_the_builds_model(desk: Desk) -> None:
    """As outputs, too."""
    desk.train("1")
    desk.check("1")
    assert "Model mean_regression:1 was registered for this run." in desk.said
    expected = {"model_registered": "true", "model_name": "mean_regression", "model_version": "1"}
    assert expected.items() <= desk.outputs.items()


def test_check_model_says_exactly_when_none_was_registered(desk: Desk) -> None:
    """And fails only when that was asked for, with exit code 7."""
    desk.train("1")
    desk.train("2", shift=1.0)
    assert desk.check("2") is None
    assert "\nModel was not registered for this run.\n" in desk.said
    assert desk.outputs["model_registered"] == "false"
    with pytest.raises(NotRegisteredError) as caught:
        desk.check("2", fail_if_none=True)
    assert caught.value.exit_code == 7


def test_check_model_of_a_build_that_ran_nothing_is_an_error_of_usage(desk: Desk) -> None:
    """Silence would look like a rejected model."""
    with pytest.raises(UsageError, match="ran no training"):
        desk.check("1")


def test_check_model_of_a_run_that_failed_fails_like_it(desk: Desk) -> None:
    """Not as a rejected model."""
    write_data(desk.root, ["text"])
    with pytest.raises(DataError):
        desk.train("1")
    with pytest.raises(DataError):
        desk.check("1")


# Versions


def test_withdrawing_needs_a_reason(desk: Desk) -> None:
    """It is kept with the version."""
    desk.train("1")
    with pytest.raises(UsageError, match="--reason"):
        desk.withdraw("mean_regression:1", " ")
    desk.withdraw("mean_regression:1", "bad data")
    assert desk.platform.version("mean_regression", "1").withdrawn == "bad data"
    assert "champion: none" in desk.said


@pytest.mark.parametrize("reference", ["mean_regression", "mean_regression:", ":1", "mean_regression:one", "a'b:1", ""])
def test_what_names_no_model_is_refused(desk: Desk, reference: str) -> None:
    """NAME:VERSION or champion."""
    with pytest.raises(UsageError, match="NAME:VERSION"):
        workflows.find_version(desk.settings("1"), desk.platform, reference)


def test_the_champion_can_be_asked_for_by_that_word(desk: Desk) -> None:
    """When there is one."""
    with pytest.raises(UsageError, match="no champion yet"):
        workflows.find_version(desk.settings("1"), desk.platform, "champion")
    desk.train("1")
    assert workflows.find_version(desk.settings("1"), desk.platform, "champion").version == "1"


# The artifact


def test_by_default_this_builds_model_is_packaged_and_no_other(desk: Desk) -> None:
    """Not the newest, not the champion."""
    desk.train("1", shift=1.0)
    desk.train("2")
    assert desk.package("1").model["version"] == "1"
    assert desk.package("2").model["version"] == "2"


def test_a_build_that_registered_nothing_packages_nothing(desk: Desk) -> None:
    """Another build's model is never handed over; the artifact before stays."""
    desk.train("1")
    before = desk.package("1")
    desk.train("2", shift=1.0)
    with pytest.raises(NotRegisteredError, match="--model champion"):
        desk.package("2")
    assert (desk.root / "artifact" / "model.json").exists()
    assert before.package_sha256 == desk.package("1").package_sha256


def test_a_build_that_ran_no_training_is_a_mistake_and_no_rejected_model(desk: Desk) -> None:
    """A build id that nobody knows is most likely misspelt."""
    desk.train("1")
    with pytest.raises(UsageError, match="build 11 ran no training"):
        desk.package("11")


def test_the_champion_is_packaged_with_todays_scoring_code(desk: Desk) -> None:
    """A fix to scoring ships without a better model."""
    desk.train("1")
    before = desk.package("1")
    (desk.root / "scoring" / "score.py").write_text("# fixed\n")
    after = desk.package("2", model="champion")
    assert after.model["version"] == "1"
    assert after.package_sha256 != before.package_sha256
    assert (after.package / "scoring" / "score.py").read_text() == "# fixed\n"


def test_the_artifact_tells_the_commit_of_its_scoring_code_from_that_of_the_training(desk: Desk) -> None:
    """They differ after a redeploy; outside a repository there is none to tell."""
    desk.train("1")
    assert desk.package("1").model["packaging_commit"] == ""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "scoring"], ["commit", "--quiet", "-m", "newer"]):
        subprocess.run(["git", *identity, *arguments], cwd=desk.root, check=True)
    model = desk.package("2", model="champion").model
    assert model["packaging_commit"] == builds.git_commit(desk.root) != model["tags"]["git_commit"]


def test_a_withdrawn_model_is_not_packaged(desk: Desk) -> None:
    """Neither by name nor as the build's."""
    desk.train("1")
    desk.withdraw("mean_regression:1")
    with pytest.raises(UsageError, match="is withdrawn: bad data"):
        desk.package("1", model="mean_regression:1")
    with pytest.raises(NotRegisteredError):
        desk.package("1")


def test_a_directory_that_holds_something_else_is_left_alone(desk: Desk) -> None:
    """``--output .`` must not cost the repository."""
    desk.train("1")
    with pytest.raises(UsageError, match="choose another --output"):
        desk.package("1", output="scoring")
    assert (desk.root / "scoring" / "score.py").exists()


def test_a_damaged_version_is_not_packaged(desk: Desk) -> None:
    """Exit code 8, and no artifact appears, not even a part."""
    desk.train("1")
    version = desk.platform.version("mean_regression", "1")
    (desk.platform.stored(version) / "model" / "mean.json").write_text("0")
    with pytest.raises(IntegrityError, match="mean.json was changed"):
        desk.package("1")
    assert [path.name for path in desk.root.iterdir() if "artifact" in path.name or path.name[:3] == ".mo"] == []


# Deployment


@pytest.fixture
def packaged(desk: Desk) -> Desk:
    """A build with its model packaged."""
    desk.train("1", shift=1.0)
    desk.package("1")
    return desk


def test_deploy_shows_its_plan_and_then_what_serves(packaged: Desk) -> None:
    """The candidate has answered its package's examples before it serves."""
    packaged.deploy()
    assert packaged.serving().model == {"name": "mean_regression", "version": "1"}
    assert "plan for fake:\n  start 1\n  switch the traffic\n" in packaged.said
    assert "1 examples answered as expected" in packaged.said


def test_a_dry_run_shows_the_plan_and_changes_nothing(packaged: Desk) -> None:
    """Nothing is deployed after it."""
    packaged.deploy(dry_run=True)
    assert "  start 1\n" in packaged.said
    assert "a dry run: nothing was changed" in packaged.said
    assert packaged.target.status() is None


def test_what_serves_already_is_not_deployed_again(packaged: Desk) -> None:
    """The plan is empty and says so."""
    packaged.deploy()
    since = packaged.serving().since
    packaged.deploy()
    assert "nothing to change" in packaged.said
    assert packaged.serving().since == since


@pytest.mark.parametrize("path", ["package/model/mean.json", "package/scoring/score.py", "package/manifest.json"])
def test_a_file_changed_after_packaging_is_refused(packaged: Desk, path: str) -> None:
    """Exit code 8; nothing is started."""
    (packaged.root / "artifact" / path).write_text("{}")
    with pytest.raises(IntegrityError) as caught:
        packaged.deploy()
    assert caught.value.exit_code == 8
    assert packaged.target.logs(10) == []


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_withdrawn_model_is_not_deployed(packaged: Desk, dry_run: bool) -> None:
    """Even when it was packaged before; exit code 2, and nothing serves."""
    packaged.withdraw("mean_regression:1")
    with pytest.raises(UsageError, match="mean_regression:1 is withdrawn: bad data"):
        packaged.deploy(dry_run=dry_run)
    assert packaged.target.status() is None


class Unreachable(FakePlatform):
    """A registry that does not answer."""

    def version(self, model_name: str, version: str) -> ModelVersion:
        raise UnavailableError("does not answer", where="registry")


def test_without_the_registrys_answer_nothing_is_deployed(packaged: Desk, tmp_path: Path) -> None:
    """It may have been withdrawn; exit code 5, not that of an unhealthy service."""
    packaged.platform = Unreachable(tmp_path / "unreachable")
    with pytest.raises(UnavailableError, match="does not answer"):
        packaged.deploy()
    assert packaged.target.status() is None


def test_a_model_of_another_registry_is_deployed_with_a_warning(packaged: Desk, tmp_path: Path) -> None:
    """An artifact may have been made elsewhere."""
    packaged.platform = FakePlatform(tmp_path / "another")
    packaged.deploy()
    assert "warning: mean_regression:1 is unknown to this registry" in packaged.said
    assert packaged.serving().model["version"] == "1"


def write_image(desk: Desk, content: object) -> Path:
    """An image.json beside the artifact."""
    path = desk.root / "artifact" / "image.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content", ["{", "[]", "null", {"package_sha256": "0" * 64}])
def test_the_image_of_another_package_is_refused(packaged: Desk, content: object) -> None:
    """So is a file that build-image did not write."""
    write_image(packaged, content)
    with pytest.raises(IntegrityError, match="run: inv build-image"):
        packaged.deploy()


def test_a_release_knows_its_image_by_digest(packaged: Desk) -> None:
    """And the build that its model came from."""
    artifact = packaged.package("1")
    digest = "sha256:" + "1" * 64
    write_image(packaged, {"package_sha256": artifact.package_sha256, "repository": "r/m", "digest": digest})
    release = workflows.release(artifact)
    assert (release.image, release.image_digest, release.build_id) == ("r/m", digest, "1")


@pytest.fixture
def deployed(packaged: Desk) -> Desk:
    """Version 1 serves, and version 2 took over."""
    packaged.deploy()
    packaged.train("2")
    packaged.package("2", output="artifact-2")
    packaged.deploy("artifact-2")
    assert packaged.serving().previous == {"name": "mean_regression", "version": "1"}
    return packaged


def smoke(desk: Desk) -> None:
    """Ask what serves."""
    workflows.smoke(desk.settings("2"), desk.target, desk.console, artifact=desk.root / "artifact-2")


def test_smoke_asks_what_serves(deployed: Desk) -> None:
    """For the examples of its own package."""
    smoke(deployed)
    assert "mean_regression:2 answers its package's examples" in deployed.said


def spoil(desk: Desk) -> None:
    """The package expects another answer than the service gives."""
    path = desk.root / "artifact-2" / "package" / "model" / "examples.json"
    path.write_text(path.read_text().replace("2.5", "2.75"))


def test_when_smoke_fails_the_version_before_is_put_back(deployed: Desk) -> None:
    """And the command fails with exit code 6."""
    spoil(deployed)
    with pytest.raises(UnhealthyError, match="rolled back, mean_regression:1 serves"):
        smoke(deployed)
    assert deployed.serving().model["version"] == "1"


def test_when_smoke_fails_without_a_version_before_that_is_told(deployed: Desk) -> None:
    """After a rollback the version left is no way back."""
    workflows.rollback(deployed.settings("2"), deployed.target, deployed.console)
    path = deployed.root / "artifact" / "package" / "model" / "examples.json"
    path.write_text(path.read_text().replace("3.5", "3.75"))
    with pytest.raises(UnhealthyError, match="there is no version before"):
        smoke(deployed)


def test_smoke_where_nothing_is_deployed_tells_the_next_step(desk: Desk) -> None:
    """Exit code 2."""
    with pytest.raises(UsageError, match="run: inv deploy --target fake"):
        smoke(desk)


class RemoteTarget(FakeTarget):
    """A target that keeps no copy of the package on this machine."""

    def status(self) -> Status | None:
        found = super().status()
        return replace(found, package="") if found else None


def test_a_remote_target_is_asked_with_the_artifact_that_was_deployed(packaged: Desk) -> None:
    """Another artifact's examples would blame a healthy service."""
    packaged.train("2")
    packaged.package("2", output="artifact-2")
    with RemoteTarget() as target:
        packaged.target = target
        packaged.deploy("artifact-2")
        smoke(packaged)
        with pytest.raises(UsageError, match="pass the artifact that was deployed"):
            workflows.smoke(packaged.settings("1"), target, packaged.console, artifact=packaged.root / "artifact")


def test_rollback_undeploy_and_promote_say_what_serves(deployed: Desk) -> None:
    """A target without a canary has nothing to promote."""
    workflows.rollback(deployed.settings("2"), deployed.target, deployed.console)
    assert deployed.serving().model["version"] == "1"
    with pytest.raises(UsageError, match="no canary"):
        workflows.promote(deployed.target, deployed.console)
    workflows.undeploy(deployed.target, deployed.console)
    assert "nothing is deployed on fake" in deployed.said
    assert workflows.status(deployed.target) is None


def test_redeploy_ships_the_champion_with_edited_scoring_code(deployed: Desk) -> None:
    """The model is the same, the package another."""
    before = deployed.serving()
    (deployed.root / "scoring" / "score.py").write_text("# fixed\n")
    artifact = deployed.root / "artifact-3"
    workflows.redeploy(
        deployed.settings("3"), deployed.platform, deployed.target, deployed.console, artifact=artifact
    )
    assert deployed.serving().model == before.model
    assert deployed.serving().package_sha256 != before.package_sha256


def test_redeploy_builds_the_image_of_what_it_packaged_before_it_deploys(deployed: Desk) -> None:
    """A remote target deploys by digest, so there must be one by then."""
    before, artifact, seen = deployed.serving(), deployed.root / "artifact-4", list[bool]()
    (deployed.root / "scoring" / "score.py").write_text("# fixed again\n")

    def build_image() -> None:
        seen.append((artifact / "model.json").is_file() and deployed.serving() == before)

    workflows.redeploy(
        deployed.settings("4"), deployed.platform, deployed.target, deployed.console,
        artifact=artifact, build_image=build_image,
    )
    assert seen == [True]


def test_keys_are_not_shown_where_a_log_would_keep_them(deployed: Desk) -> None:
    """Under TF_BUILD their values are refused; their names are not."""
    under_azure = deployed.settings("1", TF_BUILD="True")
    with pytest.raises(UsageError, match="a pipeline's log would keep the keys"):
        workflows.keys(under_azure, deployed.target, show=True)
    assert workflows.keys(under_azure, deployed.target, show=False) == Keys("fake-primary", "fake-secondary")
    assert workflows.keys(deployed.settings("1"), deployed.target, show=True).primary == "fake-primary"


# Doctor


class Sick(FakePlatform):
    """A platform with a finding."""

    def diagnose(self) -> list[Finding]:
        return [Finding("disk", False, "1 MiB free", "make room")]


def test_doctor_counts_what_needs_attention(desk: Desk, tmp_path: Path) -> None:
    """Each finding with its next step; when all is fine it says so and passes."""
    workflows.doctor(desk.platform, [desk.target], desk.console)
    assert "ok   fake: fake target: always there" in desk.said
    with pytest.raises(ConfigurationError, match="1 of 2 findings need attention"):
        workflows.doctor(Sick(tmp_path / "sick"), [desk.target], desk.console)
    assert "FAIL fake: disk: 1 MiB free\n     next: make room\n" in desk.said


@pytest.mark.parametrize(
    "call",
    [
        lambda desk: desk.package("1"),
        lambda desk: desk.check("1"),
        lambda desk: desk.deploy(),
        lambda desk: desk.withdraw("mean_regression:1"),
    ],
)
def test_every_error_of_an_empty_desk_says_where_and_why(desk: Desk, call: Callable[[Desk], object]) -> None:
    """Nothing fails with a bare exception."""
    with pytest.raises(MlopsError) as caught:
        call(desk)
    assert caught.value.where
    assert caught.value.what
