"""The pipelines do what the tasks do: their expanded scripts are run here, job by job (see pipeline_player.py).

Mostly ``aci``, ``aks`` and ``webapp`` are played by the target ``local``, without a container engine, and the tests say
so by looking at ``stood_in``. Where there is an engine, one test deploys to the real targets ``aci`` and ``webapp``
against the emulated Azure, with the real image.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from emulators import Emulator
from ml_service.stages import STAGES
from tests.support.images import removing_images
from tests.support.services import engine_or_skip, registry_or_skip
from tests.support.sources import ROOT, repository_files
from tools.azure_pipelines.expand import expand
from tools.azure_pipelines.model import Pipeline, read
from tools.azure_pipelines.played import CANCELED, FAILED, SKIPPED, SUCCEEDED, Played
from tools.azure_pipelines.player import Player, make_checkout

FOLDER = ROOT / ".azure-pipelines"
TRAIN, DEPLOY = "diabetes_regression-ci-train-register.yml", "diabetes_regression-cd-deploy.yml"
STAND_INS = {"aci": "local", "aks": "local", "webapp": "local", "--push": ""}
"""Without an engine: the image is not built, and the target local needs none."""
GROUP = {
    "AZURE_RM_SVC_CONNECTION": "azure-resources",
    "WORKSPACE_SVC_CONNECTION": "azure-workspace",
    "ACI_DEPLOYMENT_NAME": "diabetes-aci",
    "IMAGE_REGISTRY": "127.0.0.1:9",
    # What makes this machine the platform, in place of what the variables template says.
    "MLOPS_PLATFORM": "local",
    "REQUIRE_IMAGE": "false",
    "DOCKER_HOST": "unix:///nowhere/docker.sock",
    "LOCAL_PORT": "0",
}
QUALITY = ("Quality",)
"""Lint and tests of the whole repository, which `inv ci` runs: played by a test of their own, on a small one."""


def pipeline(name: str, folder: Path = FOLDER, **given: str) -> Pipeline:
    """The expanded pipeline of a file."""
    return read(name, expand(folder, name, given)[0])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``checkout`` gives a job: the repository without its tests."""
    files = [path for path in repository_files() if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks")]
    return make_checkout(ROOT, files, tmp_path_factory.mktemp("checkout"))


Players = Callable[..., Player]


@pytest.fixture(scope="module")
def players(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Players]:
    """Makes players; whatever they deployed is removed at the end."""
    made: list[Path] = []

    def make(stand_ins: Mapping[str, str] = STAND_INS, **variables: str) -> Player:
        made.append(tmp_path_factory.mktemp("azure"))
        return Player(checkout, made[-1], variables=GROUP | variables, stand_ins=stand_ins)

    yield make
    for home in (home for work in made for home in work.glob("jobs/*/.mlops")):
        inv(home.parent, "undeploy", "--target", "local")


def inv(directory: Path, *arguments: str) -> str:
    """A task called by hand in the directory of a job that was played."""
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *arguments], cwd=directory, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def served(played: Played, stage: str) -> Any:
    """What serves after a deployment job, as ``inv status`` tells it."""
    directory = played.jobs[(stage, "Deploy")].directory
    assert directory is not None
    return json.loads(inv(directory, "status", "--target", "local", "--json"))


@pytest.fixture(scope="module")
def trained(players: Players) -> tuple[Player, Played]:
    """A project whose first training run, build 101, registered a model."""
    player = players()
    return player, player.play(pipeline(TRAIN), "101", skip=QUALITY)


def test_training_registers_and_hands_over_the_artifact(trained: tuple[Player, Played]) -> None:
    """Published in one job, trained by the server job, checked and packaged in others: green, with model.json."""
    _, played = trained
    assert (played.result, played.stages) == (
        SUCCEEDED,
        {"Model_CI": SUCCEEDED, "Train": SUCCEEDED, "Artifact": SUCCEEDED},
    ), played.log
    model = json.loads((played.record.artifacts / "model" / "model.json").read_bytes())
    assert (model["name"], model["version"], model["tags"]["build_id"]) == ("diabetes_regression", "1", "101")
    assert model["tags"]["build_uri"] == "https://dev.azure.com/example/project/_build/results?buildId=101"
    assert model["branch"] == "refs/heads/master"


def test_a_run_with_a_model_is_tagged_and_summarised(trained: tuple[Player, Played]) -> None:
    """The deployment pipeline filters on the tag; the run's page shows verdict, metrics and plots."""
    _, played = trained
    assert played.record.tags == ["model-registered"]
    (summary,) = played.summaries
    assert "Model diabetes\\_regression:1 was registered" in summary
    assert "## Verdict: accepted" in summary
    assert "| mse | 32" in summary
    assert summary.count("data:image/svg+xml;base64,") == 2


def test_a_rejected_candidate_hands_over_nothing(trained: tuple[Player, Played]) -> None:
    """The same data again is not better: the server job is canceled, the report still says why, nothing is packaged."""
    player, _ = trained
    played = player.play(pipeline(TRAIN), "102", skip=QUALITY)
    assert played.stages == {"Model_CI": SUCCEEDED, "Train": CANCELED, "Artifact": SKIPPED}, played.log
    assert "Model was not registered for this run." in played.jobs[("Train", "Report")].log
    assert played.jobs[("Train", "Report")].result == SUCCEEDED
    assert (played.record.tags, list(played.record.artifacts.iterdir())) == ([], [])
    assert "## Verdict: rejected" in played.summaries[0]


def test_a_rejected_candidate_ends_green_without_run_cancel(trained: tuple[Player, Played], players: Players) -> None:
    """ALLOW_RUN_CANCEL=false: nothing registered, nothing packaged, and nothing red."""
    patient = players(ALLOW_RUN_CANCEL="false")
    patient.store = trained[0].store
    played = patient.play(pipeline(TRAIN), "103", skip=QUALITY)
    assert (played.result, played.stages["Artifact"]) == (SUCCEEDED, SKIPPED), played.log
    assert list(played.record.artifacts.iterdir()) == []


def test_deployment_takes_the_newest_run_with_a_model_and_ends_with_a_smoke_test(
    trained: tuple[Player, Played],
) -> None:
    """Build 102 registered nothing, so 101 is deployed; what is not configured is skipped and stops nothing."""
    player, _ = trained
    played = player.play(pipeline(DEPLOY), "201")
    assert played.stages == {"Image": SUCCEEDED, "ACI": SUCCEEDED, "AKS": SKIPPED, "WebApp": SKIPPED}, played.log
    assert "Model diabetes_regression:1 of build 101" in played.jobs[("Image", "Image")].log
    assert played.stood_in == {"aci": "local", "--push": ""}
    assert played.scripts[-1] == "inv smoke --target local --artifact artifact"
    assert "answers its package's examples" in played.jobs[("ACI", "Deploy")].log
    assert served(played, "ACI")["model"] == {"name": "diabetes_regression", "version": "1"}
    assert served(played, "ACI")["build_id"] == "101"


def test_a_build_can_be_chosen(trained: tuple[Player, Played]) -> None:
    """Model Train CI Build Id: that build's artifact, whatever is newest."""
    player, _ = trained
    played = player.play(pipeline(DEPLOY, artifactBuildId="101"), "202")
    assert played.stages["ACI"] == SUCCEEDED, played.log


def test_a_build_id_that_is_no_number_is_refused(trained: tuple[Player, Played]) -> None:
    """The parameter reaches a task by the environment only, and the task takes digits only."""
    player, played = trained
    player.records.append(type(played.record)("101; ls", TRAIN, "refs/heads/master", played.record.artifacts))
    refused = player.play(pipeline(DEPLOY, artifactBuildId="101; ls"), "203")
    player.records.pop()
    assert refused.stages == {"Image": FAILED, "ACI": SKIPPED, "AKS": SKIPPED, "WebApp": SKIPPED}
    assert "invalid build id '101; ls': expected digits only" in refused.log
    assert not any("; ls" in script for script in refused.scripts)


def test_an_artifact_of_another_branch_is_refused(trained: tuple[Player, Played], tmp_path: Path) -> None:
    """Whoever names the build of a feature branch gets a message, and no deployment."""
    player, played = trained
    shutil.copytree(played.record.artifacts / "model", tmp_path / "model")
    described = json.loads((tmp_path / "model" / "model.json").read_bytes())
    (tmp_path / "model" / "model.json").write_text(json.dumps({**described, "branch": "refs/heads/feature"}))
    player.records.insert(0, type(played.record)("301", TRAIN, "refs/heads/feature", tmp_path))
    refused = player.play(pipeline(DEPLOY, artifactBuildId="301"), "204")
    assert refused.stages["Image"] == FAILED
    assert "was made on refs/heads/feature, and only refs/heads/master is deployed" in refused.log


def test_a_change_of_the_scoring_code_ships_the_champion(trained: tuple[Player, Played]) -> None:
    """No training: the champion is packaged with the scoring code of the commit, deployed and asked."""
    player, _ = trained
    played = player.play(pipeline("diabetes_regression-scoring.yml"), "205", skip=QUALITY)
    assert played.stages == {"Quality": SUCCEEDED, "ACI": SUCCEEDED, "AKS": SKIPPED, "WebApp": SKIPPED}, played.log
    assert served(played, "ACI")["model"] == {"name": "diabetes_regression", "version": "1"}


def test_one_pipeline_does_what_inv_ci_does(players: Players) -> None:
    """From commit to three smoke-tested targets, trained on an agent: the tasks of inv ci, in its order."""
    player = players(AKS_DEPLOYMENT_NAME="aks", WEBAPP_DEPLOYMENT_NAME="web")
    played = player.play(pipeline("diabetes_regression-ci.yml", trainOn="agent"), "401", skip=QUALITY)
    assert set(played.stages.values()) == {SUCCEEDED}, played.log
    tasks = list(dict.fromkeys(script.split()[1] for script in played.scripts))
    assert tasks == [stage.task for stage in STAGES[STAGES.index(_stage("publish")) :]]
    assert played.stood_in == STAND_INS
    packages = {served(played, stage)["package_sha256"] for stage in ("ACI", "AKS", "WebApp")}
    assert len(packages) == 1


def _stage(task: str) -> Any:
    return next(stage for stage in STAGES if stage.task == task)


# The real targets


@pytest.mark.docker
def test_aci_and_web_app_serve_the_real_image_in_the_emulated_azure(
    trained: tuple[Player, Played], players: Players
) -> None:
    """One image, pushed by digest, goes to both: deployed and asked by jobs that share nothing but Azure."""
    client, registry, name = engine_or_skip(), registry_or_skip(), f"test-parity-{uuid.uuid4().hex[:8]}"
    with Emulator() as azure, removing_images(client, f"{registry}/{name}"):
        player = players(
            {"aks": "local"},
            **{
                **azure.settings(),
                "DOCKER_HOST": "",
                "REQUIRE_IMAGE": "true",
                "IMAGE_REGISTRY": registry,
                "IMAGE_NAME": name,
                "SCORING_KEYS_VAULT": "emulated",
                "ACI_DRAIN_SECONDS": "1",
                "WEBAPP_DEPLOYMENT_NAME": "diabetes-web",
                "WEBAPP_PLAN": "emulated",
                "WEBAPP_SLOT": "staging",
            },
        )
        player.store, player.records = trained[0].store, trained[0].records
        played = player.play(pipeline(DEPLOY), "206")
        assert played.stages == {"Image": SUCCEEDED, "ACI": SUCCEEDED, "AKS": SKIPPED, "WebApp": SUCCEEDED}, played.log
        assert played.stood_in == {}
        for stage in ("ACI", "WebApp"):
            assert "answers its package's examples" in played.jobs[(stage, "Deploy")].log
        (group,) = azure.arm.groups.values()
        image = group.body["properties"]["containers"][0]["properties"]["image"]
        assert azure.arm.sites["diabetes-web"].config["linuxFxVersion"] == f"DOCKER|{image}"
        secrets = [value for versions in azure.arm.secrets.values() for _, value in versions]
        assert secrets and not [value for value in secrets if value in played.log]
    client.close()


# What is planted turns it red


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the YAML with one change."""

    def plant(file: str, old: str, new: str) -> Path:
        folder = tmp_path / "pipelines"
        shutil.copytree(FOLDER, folder)
        text = (folder / file).read_text()
        assert text.count(old) == 1
        (folder / file).write_text(text.replace(old, new))
        return folder

    return plant


def test_a_line_of_az_turns_it_red(trained: tuple[Player, Played], planted: Callable[..., Path]) -> None:
    """What is no task of ours is not here to be found: the job fails."""
    folder = planted("templates/image-stage.yml", "inv build-image --artifact artifact --push", "az ml model list")
    played = trained[0].play(pipeline(DEPLOY, folder), "501")
    assert played.stages == {"Image": FAILED, "ACI": SKIPPED, "AKS": SKIPPED, "WebApp": SKIPPED}


def test_a_missing_artifact_turns_it_red(trained: tuple[Player, Played], planted: Callable[..., Path]) -> None:
    """Jobs share no files, so an artifact that nobody published is missed."""
    folder = planted("templates/image-stage.yml", "artifact: deployment", "artifact: deployed")
    played = trained[0].play(pipeline(DEPLOY, folder), "502")
    assert played.stages["ACI"] == FAILED
    assert "artifact deployment was not found" in played.log


@pytest.mark.parametrize(
    "old, new", [("PipelineId: $(pipeline_id)", "PipelineId: $(pipeline_ids)"), ("publish.pipeline_id'", "publish.id'")]
)
def test_a_misspelt_variable_turns_it_red(
    trained: tuple[Player, Played], planted: Callable[..., Path], old: str, new: str
) -> None:
    """Neither a macro nor an output variable that nothing sets reaches the server job."""
    played = trained[0].play(
        pipeline(TRAIN, planted("templates/train-stages.yml", old, new)), re.sub(r"\W", "", new), skip=QUALITY
    )
    assert played.jobs[("Train", "Run")].result == FAILED
    assert (played.result, played.stages["Artifact"]) == (FAILED, SKIPPED)
