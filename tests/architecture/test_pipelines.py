"""The YAML of .azure-pipelines only calls tasks, and every name in it is that of something."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ml_service.stages import STAGES
from tasks import parse_task
from tests.support.sources import ROOT
from tools.azure_pipelines.check import check, pipeline_files
from tools.azure_pipelines.expand import expand
from tools.azure_pipelines.model import Pipeline, Stage, read
from tools.azure_pipelines.rules.expressions import OUTPUTS
from tools.azure_pipelines.rules.subject import GROUP, Problem
from tools.azure_pipelines.schema import FALSE_ALARMS

FOLDER = ROOT / ".azure-pipelines"
EXAMPLE = ROOT / ".env.example"
PIPELINES = pipeline_files(FOLDER)


def pipeline(name: str, **given: str) -> Pipeline:
    """The expanded pipeline of a file."""
    return read(name, expand(FOLDER, name, given)[0])


@pytest.mark.slow
def test_nothing_is_wrong_with_the_pipelines() -> None:
    """Each file expanded, for each choice of its parameters: scripts, order, names, the official schema."""
    assert check(FOLDER, EXAMPLE, parse_task) == []


def test_the_pipelines_of_the_guide_are_there() -> None:
    """Its two, the combined one, the one for scoring code, the one for pull requests, and the three environments."""
    assert PIPELINES == [
        "diabetes_regression-cd-deploy.yml",
        "diabetes_regression-cd-dev-test-prod.yml",
        "diabetes_regression-ci-train-register.yml",
        "diabetes_regression-ci.yml",
        "diabetes_regression-scoring.yml",
        "pr.yml",
    ]


def scripts(found: Pipeline) -> list[str]:
    """Every command line of a pipeline."""
    return [step.script for step in found.steps if step.script is not None]


@pytest.mark.parametrize("train_on", ["server", "agent"])
def test_the_combined_pipeline_calls_the_stages_of_inv_ci_in_its_order(train_on: str) -> None:
    """None is left out and none is added, but that the server job trains in place of an agent."""
    combined = pipeline("diabetes_regression-ci.yml", trainOn=train_on)
    called = list(dict.fromkeys(script.split()[1] for script in scripts(combined)))
    expected = [stage.task for stage in STAGES if not (train_on == "server" and stage.task == "train")]
    assert called == expected


@pytest.mark.parametrize("name", PIPELINES)
def test_a_script_is_one_task_and_holds_no_variable(name: str) -> None:
    """What is written into a command line could become a command; settings reach tasks by the environment."""
    assert [s for s in scripts(pipeline(name)) if not re.fullmatch(r"inv( [\w./-]+)+", s)] == []


@pytest.mark.parametrize("name", PIPELINES)
def test_secrets_are_passed_by_env_alone(name: str) -> None:
    """The one secret of the variable group stands nowhere but in the environment of signed-in steps."""
    found = pipeline(name)
    holders = [step for step in found.steps if "SP_APP_SECRET" in str(dict(step.raw))]
    assert all(step.env["SP_APP_SECRET"] == "$(SP_APP_SECRET)" for step in holders)
    assert str(found.raw).count("$(SP_APP_SECRET)") == len(holders)


def test_azure_is_reached_through_a_service_connection_with_a_session_that_is_kept() -> None:
    """A federated sign-in ends after ten minutes, in the middle of a deployment, unless it is kept active."""
    for name in PIPELINES:
        for step in (step for step in pipeline(name).steps if step.task == "AzureCLI@2"):
            assert (step.inputs["keepAzSessionActive"], step.inputs["scriptLocation"]) == ("true", "inlineScript")


def test_a_pull_request_sees_no_secret() -> None:
    """Quality only: no variable group, no service connection, no environment."""
    found = pipeline("pr.yml")
    assert "variables" not in found.raw
    assert [s.split()[1] for s in scripts(found)] == ["lint", "test", "coverage", "validate-data"]
    assert not any("azureSubscription" in step.inputs for step in found.steps)


# Triggers


@pytest.mark.slow
def test_retraining_by_schedule_is_off_and_can_be_turned_on(tmp_path: Path) -> None:
    """Taking the comment signs away, as the file says, gives a valid weekly schedule on master."""
    name = "diabetes_regression-ci-train-register.yml"
    assert "schedules" not in pipeline(name).raw
    shutil.copytree(FOLDER, tmp_path / "on")
    head, start, rest = (tmp_path / "on" / name).read_text().partition("# schedules:\n")
    block, blank, tail = (start + rest).partition("\n\n")
    turned_on = head + re.sub("^# ", "", block, flags=re.MULTILINE) + blank + tail
    (tmp_path / "on" / name).write_text(turned_on)
    assert check(tmp_path / "on", EXAMPLE, parse_task) == []
    (schedule,) = yaml.safe_load(turned_on)["schedules"]
    assert (schedule["branches"], schedule["always"]) == ({"include": ["master"]}, True)


def test_deployment_starts_only_for_runs_with_a_model() -> None:
    """The tag is asked for in the trigger, in the default version, and in the download."""
    found = pipeline("diabetes_regression-cd-deploy.yml")
    (resource,) = found.raw["resources"]["pipelines"]
    assert (resource["source"], resource["tags"]) == ("Model-Train-Register-CI", ["model-registered"])
    assert resource["trigger"] == {"branches": {"include": ["master"]}, "tags": ["model-registered"]}
    (download,) = [step for step in found.steps if step.inputs.get("buildType") == "specific"]
    assert download.inputs["tags"] == "model-registered"
    assert download.inputs["specificBuildWithTriggering"] == "true"


def test_a_build_can_be_named_under_the_name_of_the_guide() -> None:
    """`Model Train CI Build Id`; it reaches the task by the environment, and no command line."""
    raw = yaml.safe_load((FOLDER / "diabetes_regression-cd-deploy.yml").read_text())
    assert raw["parameters"][0]["displayName"] == "Model Train CI Build Id"
    found = pipeline("diabetes_regression-cd-deploy.yml", artifactBuildId="4711")
    assert [step.env["MODEL_BUILD_ID"] for step in found.steps if "MODEL_BUILD_ID" in step.env] == ["4711"]
    assert not any("4711" in script for script in scripts(found))


def test_the_paths_that_trigger_training_exist() -> None:
    """A renamed folder must not silently end the trigger."""
    for name in PIPELINES:
        paths = (pipeline(name).raw.get("trigger") or {}) if isinstance(pipeline(name).raw.get("trigger"), dict) else {}
        for path in paths.get("paths", {}).get("include", []):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_the_guide_explains_every_variable_of_the_group() -> None:
    """What somebody must type into the library is in the table."""
    guide = (ROOT / "docs" / "azure-pipelines.md").read_text()
    assert {name for name in GROUP if name not in guide} == set()
    assert {name for name in PIPELINES if name not in guide} == set()


# Deployment


def test_one_image_is_built_and_every_stage_deploys_it() -> None:
    """build-image once; each target takes the artifact that names its digest."""
    found = pipeline("diabetes_regression-cd-deploy.yml")
    assert sum("build-image" in script for script in scripts(found)) == 1
    downloads = [step.inputs["artifactName"] for step in found.steps if step.task == "DownloadPipelineArtifact@2"]
    assert downloads == ["model", "deployment", "deployment", "deployment"]


def deployments(found: Pipeline) -> list[Stage]:
    """The stages that deploy."""
    return [stage for stage in found.stages if any("deployment" in job.raw for job in stage.jobs)]


def test_each_target_is_deployed_then_asked_only_where_its_name_is_set() -> None:
    """ACI, AKS, Web App: a deployment job with an environment of its own, so approvals are the environment's."""
    found = pipeline("diabetes_regression-cd-deploy.yml")
    shown = [(str(stage.jobs[0].raw["environment"]), stage.jobs[0].condition) for stage in deployments(found)]
    assert shown == [
        (f"diabetes-regression-{target}", f"and(succeeded(), ne(variables['{target.upper()}_DEPLOYMENT_NAME'], ''))")
        for target in ("aci", "aks", "webapp")
    ]
    for stage, target in zip(deployments(found), ("aci", "aks", "webapp"), strict=True):
        assert [step.script for step in stage.jobs[0].steps if step.script] == [
            f"inv deploy --target {target} --artifact artifact",
            f"inv smoke --target {target} --artifact artifact",
        ]


def test_dev_test_and_prod_are_three_uses_of_one_template() -> None:
    """The same stages three times, each environment after the one before, with its own group and connection."""
    stages = deployments(pipeline("diabetes_regression-cd-dev-test-prod.yml"))
    assert [stage.name for stage in stages] == [
        f"{name}_{target}" for name in ("Dev", "Test", "Prod") for target in ("ACI", "AKS", "WebApp")
    ]
    for at, stage in enumerate(stages):
        assert set(stage.depends_on) == {"Image", *(before.name for before in stages[:at])}
        environment = stage.name.partition("_")[0].lower()
        assert stage.raw["variables"] == [{"group": f"devopsforai-aml-vg-{environment}"}]
        assert {s.inputs["azureSubscription"] for s in stage.jobs[0].steps if s.script} == {f"azure-{environment}"}


# The rules themselves: what is planted is found

Plant = Callable[..., list[Problem]]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Checks a copy of the YAML with one change."""

    def planted(file: str, old: str, new: str) -> list[Problem]:
        shutil.copytree(FOLDER, tmp_path / "planted")
        text = (tmp_path / "planted" / file).read_text()
        assert text.count(old) >= 1, old
        (tmp_path / "planted" / file).write_text(text.replace(old, new, 1))
        return check(tmp_path / "planted", EXAMPLE, parse_task)

    return planted


TRAIN, IMAGE, DEPLOY = "templates/train-stages.yml", "templates/image-stage.yml", "templates/deploy-target.yml"
CD, CD3 = "diabetes_regression-cd-deploy.yml", "diabetes_regression-cd-dev-test-prod.yml"
PREPARE, CONNECTION = "templates/prepare.yml", "connection: ${{ parameters.connection }}"
RUN, QUALITY, VARIABLES = "templates/run.yml", "templates/quality-job.yml", "diabetes_regression-variables-template.yml"


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, old, new, message",
    [
        (TRAIN, "inv package-artifact --output artifact", "az ml model download", "is not an inv task"),
        (TRAIN, "inv publish", "inv publish && rm -r x", "more than one plain command"),
        (TRAIN, "inv publish", "inv publish train", "calls 2 tasks"),
        (TRAIN, "inv publish", "inv publsh", "cannot be parsed"),
        (QUALITY, "inv lint --junit", "inv lint --junitt", "cannot be parsed"),
        (DEPLOY, "inv smoke --target ${{ parameters.target }} --artifact", "inv smoke --artifact", "cannot be parsed"),
        (TRAIN, "run: inv train\n", "run: inv smoke --target aci\n", "comes after inv smoke"),
        (TRAIN, "$(pipeline_id)", "$(pipeline_ids)", "nothing defines the variable 'pipeline_ids'"),
        (TRAIN, "$(Build.BuildId)", "$(Build.BuildID)", "nothing defines the variable 'Build.BuildID'"),
        (IMAGE, "model_train_ci.projectID", "model_train.projectID", "nothing defines the variable"),
        (DEPLOY, "variables['${{", "variables['X${{", "nothing defines the variable 'XACI_DEPLOYMENT_NAME'"),
        (TRAIN, "publish.pipeline_id'", "publish.id'", "sets no output 'id'"),
        (TRAIN, "'publish.pipeline_id'", "'publsh.pipeline_id'", "has no step 'publsh'"),
        (TRAIN, "Model_CI.Publish.outputs", "Model_CI.Publsh.outputs", "has no job 'Publsh'"),
        (TRAIN, "stageDependencies.Model_CI", "stageDependencies.Artifact", "does not depend on it"),
        (TRAIN, "Report.check.model_registered", "Report.check.registered", "sets no output 'registered'"),
        (TRAIN, "dependsOn: Quality", "dependsOn: Qualty", "no job before it has that name"),
        (TRAIN, "dependsOn: Model_CI", "dependsOn: ModelCI", "no stage before it has that name"),
        (TRAIN, "template: quality-job.yml", "template: quality.yml", "there is no template templates/quality.yml"),
        (TRAIN, "name: publish\n", "nam: publish\n", "has no parameter 'nam'"),
        (DEPLOY, "environment: ${{ parameters.environment }}-$", "environmnt: $", "official"),
        (DEPLOY, "and(in(", "and in(", "something after its end"),
        (DEPLOY, "not(failed())", "not(broken())", "the function broken()"),
        (QUALITY, "PublishTestResults@2", "PublishTestResult@2", "there is no task 'PublishTestResult@2'"),
        (QUALITY, "testResultsFiles", "testResultFiles", "official schema"),
        (QUALITY, "pathToSources", "pathToSource", "has no input 'pathToSource'"),
        (RUN, "scriptLocation: inlineScript", "scriptLocation: inline", "official schema"),
        (IMAGE, "MODEL_BUILD_ID:", "MODEL_BUILDID:", "no task reads 'MODEL_BUILDID'"),
        (VARIABLES, "name: DEPLOY_BRANCH", "name: DEPLOY_BRANCHES", "'DEPLOY_BRANCH"),
        (TRAIN, f"inv publish\n        {CONNECTION}", "inv publish", "not signed in"),
        (RUN, "SP_APP_SECRET: $(SP_APP_SECRET)", "SP_APP_ID: me", "gets no SP_APP_SECRET"),
        (PREPARE, "- checkout: self\n  fetchDepth: '1'\n", "", "job 'Deploy' runs scripts without checkout: self"),
        (DEPLOY, "pool: ${{ parameters.pool }}", "pool: server", "has no agent"),
        (CD, "- group: devopsforai-aml-vg", "- group: devopsforai-aml-gv", "no variable group 'devopsforai-aml-gv'"),
        (CD3, "devopsforai-aml-vg-dev", "devopsforai-aml-dev", "no variable group 'devopsforai-aml-dev'"),
        (IMAGE, "parameters.source, 'this-run'", "parameters.sorce, 'this-run'", "'sorce'"),
    ],
)
def test_what_is_planted_is_found(plant: Plant, file: str, old: str, new: str, message: str) -> None:
    """Each of these would pass Azure's editor and fail, or do the wrong thing, in a run."""
    found = plant(file, old, new)
    assert [problem.message for problem in found if message in problem.message], found


@pytest.mark.slow
def test_a_problem_names_its_file_and_line(plant: Plant) -> None:
    """The one who edits goes straight there."""
    found = plant("templates/train-stages.yml", "run: inv check-model", "run: az ml model list")
    lines = (FOLDER / "templates" / "train-stages.yml").read_text().splitlines()
    (line,) = [number for number, text in enumerate(lines, 1) if text.strip() == "run: inv check-model"]
    assert any("az ml" in problem.message for problem in found), found
    assert {str(p.place) for p in found if "az ml" in p.message} <= {f"templates/train-stages.yml:{line}"} | {
        f"templates/run.yml:{number}" for number in range(1, 60)
    }


@pytest.mark.slow
def test_a_template_that_nobody_uses_is_found(tmp_path: Path) -> None:
    """It would go stale unseen."""
    shutil.copytree(FOLDER, tmp_path / "all")
    (tmp_path / "all" / "templates" / "old.yml").write_text("steps: []\n")
    messages = [(p.place.file, p.message) for p in check(tmp_path / "all", EXAMPLE, parse_task)]
    assert messages == [("templates/old.yml", "no pipeline uses this template")]


def test_the_false_alarms_of_the_schema_are_just_these() -> None:
    """A third one has to be looked at by a person before it is listed."""
    assert {name.rpartition(".")[2].partition("@")[0] for name in FALSE_ALARMS} == {
        "PublishCodeCoverageResults",
        "MLPublishedPipelineRestAPITask",
    }


def test_reading_the_schema_builds_no_grammar_of_addresses() -> None:
    """It would take most of the time of `inv doctor --pipelines`, for formats that nothing here checks."""
    code = "import sys; from tools.azure_pipelines.schema import official; official(); print('lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_the_output_variables_are_those_of_the_workflows() -> None:
    """Each one that the rules know is written by the code of its task."""
    written = set(
        re.findall(
            r'console\.output\("(\w+)"',
            "".join(
                path.read_text()
                for path in [
                    *ROOT.glob("ml_service/workflows/*.py"),
                    *ROOT.glob("ml_service/targets/*/*.py"),
                    *ROOT.glob("ml_service/images/*.py"),
                ]
            ),
        )
    )
    assert {name for names in OUTPUTS.values() for name in names} <= written
