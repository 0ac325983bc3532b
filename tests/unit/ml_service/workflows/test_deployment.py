"""Deploying, smoke tests and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ml_service.errors import (
    IntegrityError,
    UnavailableError,
    UnhealthyError,
    UsageError,
)
from ml_service.ports import (
    Keys,
    ModelVersion,
    Status,
)
from ml_service.workflows import deployment
from ml_service.workflows.artifact import release
from tests.support.fake_platform import FakePlatform
from tests.support.fake_target import FakeTarget
from tests.support.workflow_env import WorkflowEnv

pytestmark = pytest.mark.slow


def test_deploy_shows_its_plan_and_then_what_serves(packaged: WorkflowEnv) -> None:
    """The candidate has answered its package's examples before it serves."""
    packaged.deploy()
    assert packaged.serving().model == {"name": "mean_regression", "version": "1"}
    assert "plan for fake:\n  start 1\n  switch the traffic\n" in packaged.said
    assert "1 examples answered as expected" in packaged.said


def test_a_dry_run_shows_the_plan_and_changes_nothing(packaged: WorkflowEnv) -> None:
    """Nothing is deployed after it."""
    packaged.deploy(dry_run=True)
    assert "  start 1\n" in packaged.said
    assert "a dry run: nothing was changed" in packaged.said
    assert packaged.target.status() is None


def test_what_serves_already_is_not_deployed_again(packaged: WorkflowEnv) -> None:
    """The plan is empty and says so."""
    packaged.deploy()
    since = packaged.serving().since
    packaged.deploy()
    assert "nothing to change" in packaged.said
    assert packaged.serving().since == since


@pytest.mark.parametrize("path", ["package/model/mean.json", "package/scoring/score.py", "package/manifest.json"])
def test_a_file_changed_after_packaging_is_refused(packaged: WorkflowEnv, path: str) -> None:
    """Exit code 8; nothing is started."""
    (packaged.root / "artifact" / path).write_text("{}")
    with pytest.raises(IntegrityError) as caught:
        packaged.deploy()
    assert caught.value.exit_code == 8
    assert packaged.target.logs(10) == []


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_withdrawn_model_is_not_deployed(packaged: WorkflowEnv, dry_run: bool) -> None:
    """Even when it was packaged before; exit code 2, and nothing serves."""
    packaged.withdraw("mean_regression:1")
    with pytest.raises(UsageError, match="mean_regression:1 is withdrawn: bad data"):
        packaged.deploy(dry_run=dry_run)
    assert packaged.target.status() is None


class Unreachable(FakePlatform):
    """A registry that does not answer."""

    def version(self, model_name: str, version: str) -> ModelVersion:
        raise UnavailableError("does not answer", where="registry")


def test_without_the_registrys_answer_nothing_is_deployed(packaged: WorkflowEnv, tmp_path: Path) -> None:
    """It may have been withdrawn; exit code 5, not that of an unhealthy service."""
    packaged.platform = Unreachable(tmp_path / "unreachable")
    with pytest.raises(UnavailableError, match="does not answer"):
        packaged.deploy()
    assert packaged.target.status() is None


def test_a_model_of_another_registry_is_deployed_with_a_warning(packaged: WorkflowEnv, tmp_path: Path) -> None:
    """An artifact may have been made elsewhere."""
    packaged.platform = FakePlatform(tmp_path / "another")
    packaged.deploy()
    assert "warning: mean_regression:1 is unknown to this registry" in packaged.said
    assert packaged.serving().model["version"] == "1"


def write_image(env: WorkflowEnv, content: object) -> Path:
    """An image.json beside the artifact."""
    path = env.root / "artifact" / "image.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content", ["{", "[]", "null", {"package_sha256": "0" * 64}])
def test_the_image_of_another_package_is_refused(packaged: WorkflowEnv, content: object) -> None:
    """So is a file that build-image did not write."""
    write_image(packaged, content)
    with pytest.raises(IntegrityError, match="run: inv build-image"):
        packaged.deploy()


def test_a_release_knows_its_image_by_digest(packaged: WorkflowEnv) -> None:
    """And the build that its model came from."""
    artifact = packaged.package("1")
    digest = "sha256:" + "1" * 64
    write_image(packaged, {"package_sha256": artifact.package_sha256, "repository": "r/m", "digest": digest})
    known = release(artifact)
    assert (known.image, known.image_digest, known.build_id) == ("r/m", digest, "1")


def smoke(env: WorkflowEnv) -> None:
    """Ask what serves."""
    deployment.smoke(env.settings("2"), env.target, env.console, artifact=env.root / "artifact-2")


def test_smoke_asks_what_serves(deployed: WorkflowEnv) -> None:
    """For the examples of its own package."""
    smoke(deployed)
    assert "mean_regression:2 answers its package's examples" in deployed.said


def spoil(env: WorkflowEnv) -> None:
    """The package expects another answer than the service gives."""
    path = env.root / "artifact-2" / "package" / "model" / "examples.json"
    path.write_text(path.read_text().replace("2.5", "2.75"))


def test_when_smoke_fails_the_version_before_is_put_back(deployed: WorkflowEnv) -> None:
    """And the command fails with exit code 6."""
    spoil(deployed)
    with pytest.raises(UnhealthyError, match="rolled back, mean_regression:1 serves"):
        smoke(deployed)
    assert deployed.serving().model["version"] == "1"


def test_when_smoke_fails_without_a_version_before_that_is_told(deployed: WorkflowEnv) -> None:
    """After a rollback the version left is no way back."""
    deployment.rollback(deployed.settings("2"), deployed.target, deployed.console)
    path = deployed.root / "artifact" / "package" / "model" / "examples.json"
    path.write_text(path.read_text().replace("3.5", "3.75"))
    with pytest.raises(UnhealthyError, match="there is no version before"):
        smoke(deployed)


def test_smoke_where_nothing_is_deployed_tells_the_next_step(env: WorkflowEnv) -> None:
    """Exit code 2."""
    with pytest.raises(UsageError, match="run: inv deploy --target fake"):
        smoke(env)


class RemoteTarget(FakeTarget):
    """A target that keeps no copy of the package on this machine."""

    def status(self) -> Status | None:
        found = super().status()
        return replace(found, package="") if found else None


def test_a_remote_target_is_asked_with_the_artifact_that_was_deployed(packaged: WorkflowEnv) -> None:
    """Another artifact's examples would blame a healthy service."""
    packaged.train("2")
    packaged.package("2", output="artifact-2")
    with RemoteTarget() as target:
        packaged.target = target
        packaged.deploy("artifact-2")
        smoke(packaged)
        with pytest.raises(UsageError, match="pass the artifact that was deployed"):
            deployment.smoke(packaged.settings("1"), target, packaged.console, artifact=packaged.root / "artifact")


def test_rollback_undeploy_and_promote_say_what_serves(deployed: WorkflowEnv) -> None:
    """A target without a canary has nothing to promote."""
    deployment.rollback(deployed.settings("2"), deployed.target, deployed.console)
    assert deployed.serving().model["version"] == "1"
    with pytest.raises(UsageError, match="no canary"):
        deployment.promote(deployed.target, deployed.console)
    deployment.undeploy(deployed.target, deployed.console)
    assert "nothing is deployed on fake" in deployed.said
    assert deployed.target.status() is None


def test_redeploy_ships_the_champion_with_edited_scoring_code(deployed: WorkflowEnv) -> None:
    """The model is the same, the package another."""
    before = deployed.serving()
    (deployed.root / "scoring" / "score.py").write_text("# fixed\n")
    artifact = deployed.root / "artifact-3"
    deployment.redeploy(deployed.settings("3"), deployed.platform, deployed.target, deployed.console, artifact=artifact)
    assert deployed.serving().model == before.model
    assert deployed.serving().package_sha256 != before.package_sha256


def test_redeploy_builds_the_image_of_what_it_packaged_before_it_deploys(deployed: WorkflowEnv) -> None:
    """A remote target deploys by digest, so there must be one by then."""
    before, artifact, seen = deployed.serving(), deployed.root / "artifact-4", list[bool]()
    (deployed.root / "scoring" / "score.py").write_text("# fixed again\n")

    def build_image() -> None:
        seen.append((artifact / "model.json").is_file() and deployed.serving() == before)

    deployment.redeploy(
        deployed.settings("4"),
        deployed.platform,
        deployed.target,
        deployed.console,
        artifact=artifact,
        build_image=build_image,
    )
    assert seen == [True]


def test_keys_are_not_shown_where_a_log_would_keep_them(deployed: WorkflowEnv) -> None:
    """Under TF_BUILD their values are refused; their names are not."""
    under_azure = deployed.settings("1", TF_BUILD="True")
    with pytest.raises(UsageError, match="a pipeline's log would keep the keys"):
        deployment.keys(under_azure, deployed.target, show=True)
    assert deployment.keys(under_azure, deployed.target, show=False) == Keys("fake-primary", "fake-secondary")
    assert deployment.keys(deployed.settings("1"), deployed.target, show=True).primary == "fake-primary"


class UnreachableTarget(FakeTarget):
    """A target that does not answer."""

    name = "unreachable"

    def status(self) -> Status | None:
        raise UnavailableError("does not answer", where="cluster")


class UnusedTarget(UnreachableTarget):
    """A target that nobody uses from here."""

    name = "unused"

    def is_configured(self) -> bool:
        return False


def test_the_overview_reads_every_target_that_is_configured(deployed: WorkflowEnv) -> None:
    """One that does not answer keeps none of the others from being shown; one that nobody uses is not asked."""
    outcomes = deployment.overview([UnusedTarget(), UnreachableTarget(), deployed.target])
    assert list(outcomes) == ["unreachable", "fake"]
    assert isinstance(outcomes["unreachable"], UnavailableError)
    assert outcomes["fake"] == deployed.serving()
