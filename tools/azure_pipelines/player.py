"""Plays an expanded pipeline on this machine, job by job, as Azure would: what passes between jobs, and what does not.

Each job runs in a fresh copy of the repository with a home of its own. Jobs share ``store``, which stands for Azure ML,
and besides it only artifacts and output variables. Scripts run as they are written. Played, and not run:

- checkout, Python and its environment: the environment of the test, after a look at the lock that is asked for;
- the server job: the platform's ``submit`` and ``wait``, from the three inputs that Azure's task gets;
- AzureCLI@2: its script, after a look at the service connection;
- what has no engine or no cloud here: for a target the one that ``stand_ins`` names, for an option nothing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ml_service.config import Settings
from ml_service.platforms import open_platform
from ml_service.ports import Build, RunStatus
from tools.azure_pipelines.expressions import evaluate, parse, truth
from tools.azure_pipelines.model import Job, Pipeline, Stage, Step

SUCCEEDED, FAILED, CANCELED, SKIPPED = "Succeeded", "Failed", "Canceled", "Skipped"

_COMMAND = re.compile(r"##vso\[(?P<name>[\w.]+)(?: (?P<properties>[^\]]*))?\](?P<message>.*)")
_MACRO = re.compile(r"\$\(([A-Za-z_][\w.]*)\)")
_INHERITED = ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
_CODES = {"%3B": ";", "%5D": "]", "%0D": "\r", "%0A": "\n", "%AZP25": "%"}


class StepFailedError(Exception):
    """A step failed; the message says why."""


@dataclass
class RunRecord:
    """One run of a pipeline as others see it: artifacts by name, tags, branch."""

    build_id: str
    definition: str
    branch: str
    artifacts: Path
    tags: list[str] = field(default_factory=list)


@dataclass
class JobResult:
    """How a job ended, what it printed, and the outputs of its steps as ``STEP.VARIABLE``."""

    result: str
    log: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None


@dataclass
class Played:
    """How a run ended. ``commands`` are the logging commands that the agent understood, ``stood_in`` the targets that
    another one was played for, and the options that were left out."""

    record: RunRecord
    stages: dict[str, str] = field(default_factory=dict)
    jobs: dict[tuple[str, str], JobResult] = field(default_factory=dict)
    commands: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)
    stood_in: dict[str, str] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """Red, canceled or green: what the list of runs shows."""
        found = set(self.stages.values())
        return FAILED if FAILED in found else CANCELED if CANCELED in found else SUCCEEDED

    @property
    def log(self) -> str:
        """Everything that was printed."""
        return "\n".join(job.log for job in self.jobs.values())

    def messages(self, command: str) -> list[str]:
        """The messages of each logging command of that name."""
        return [message for name, _, message in self.commands if name == command]


def decoded(value: str) -> str:
    """As the agent decodes messages and properties."""
    for code, character in _CODES.items():
        value = value.replace(code, character)
    return value


class Player:
    """An Azure DevOps project with one agent: ``play`` runs pipelines one after another."""

    def __init__(
        self, checkout: Path, work: Path, *, variables: Mapping[str, str], stand_ins: Mapping[str, str]
    ) -> None:
        self._checkout = checkout
        self._work = work
        self._group = variables
        self._stand_ins = stand_ins
        self.store = work / "store"
        self.records: list[RunRecord] = []
        self._count = 0

    def play(
        self, pipeline: Pipeline, build_id: str, *, branch: str = "refs/heads/master", skip: Sequence[str] = ()
    ) -> Played:
        """Run a pipeline under a build id. ``skip`` names jobs that are taken as succeeded without playing them."""
        artifacts = self._work / "artifacts" / build_id
        artifacts.mkdir(parents=True)
        record = RunRecord(build_id, pipeline.file, branch, artifacts)
        played = Played(record)
        for stage in pipeline.stages:
            played.stages[stage.name] = self._stage(pipeline, stage, played, skip)
        self.records.append(record)
        return played

    # Stages and jobs

    def _stage(self, pipeline: Pipeline, stage: Stage, played: Played, skip: Sequence[str]) -> str:
        if not self._holds(stage.condition, self._variables(pipeline, played), _of_stages(stage, played)):
            played.jobs |= {(stage.name, job.name): JobResult(SKIPPED) for job in stage.jobs}
            return SKIPPED
        results: dict[str, JobResult] = {}
        for job in stage.jobs:
            results[job.name] = played.jobs[(stage.name, job.name)] = (
                JobResult(SUCCEEDED, "not played")
                if job.name in skip
                else self._job(pipeline, stage, job, played, results)
            )
        return _together([one.result for one in results.values()])

    def _job(
        self, pipeline: Pipeline, stage: Stage, job: Job, played: Played, before: Mapping[str, JobResult]
    ) -> JobResult:
        variables = self._variables(pipeline, played)
        contexts = _of_job(stage, job, played, before)
        if not self._holds(job.condition, variables, contexts):
            return JobResult(SKIPPED)
        for name, value in dict(job.raw.get("variables", {})).items():
            variables[str(name)] = self._runtime(str(value), contexts)
        self._count += 1
        directory = self._work / "jobs" / f"{self._count:02}-{stage.name}-{job.name}"
        shutil.copytree(self._checkout, directory, symlinks=True)
        variables["System.DefaultWorkingDirectory"] = str(directory)
        return _PlayedJob(self, job, directory, variables, played).run()

    def _variables(self, pipeline: Pipeline, played: Played) -> dict[str, str]:
        """Those of Azure, of the YAML and of the group, the later ones winning."""
        record = played.record
        variables = {
            "Build.BuildId": record.build_id,
            "Build.SourceBranch": record.branch,
            "System.CollectionUri": "https://dev.azure.com/example/",
            "System.TeamProject": "project",
            "Agent.OS": "Linux",
        }
        for one in pipeline.raw.get("resources", {}).get("pipelines", []):
            alias = f"resources.pipeline.{one['pipeline']}"
            variables |= {f"{alias}.projectID": "project", f"{alias}.pipelineID": str(one["source"])}
        for one in pipeline.raw.get("variables", []):
            if "name" in one:
                variables[str(one["name"])] = str(one["value"])
            else:
                variables |= self._group
        return {name: expanded(value, variables) for name, value in variables.items()}

    def _holds(self, condition: str, variables: Mapping[str, str], contexts: _Contexts) -> bool:
        functions = _status_functions(list(contexts.results.values()))
        return truth(evaluate(parse(condition), {**contexts.named, "variables": variables}, functions))

    def _runtime(self, value: str, contexts: _Contexts) -> str:
        match = re.fullmatch(r"\$\[(.*)\]", value)
        found = evaluate(parse(match[1]), contexts.named, {}) if match else value
        return "" if found is None else str(found)

    def stand_in(self, name: str, played: Played) -> str:
        """What is played in place of a target or an option."""
        if name in self._stand_ins:
            played.stood_in[name] = self._stand_ins[name]
        return self._stand_ins.get(name, name)


@dataclass(frozen=True)
class _Contexts:
    """What a condition sees: the results that ``succeeded()`` looks at, and the named contexts."""

    results: Mapping[str, str]
    named: Mapping[str, Any]


def _of_stages(stage: Stage, played: Played) -> _Contexts:
    named = {
        name: {
            "result": played.stages[name],
            "outputs": {
                f"{job}.{output}": value
                for (of, job), result in played.jobs.items()
                if of == name
                for output, value in result.outputs.items()
            },
        }
        for name in stage.depends_on
    }
    return _Contexts({name: played.stages[name] for name in stage.depends_on}, {"dependencies": named})


def _of_job(stage: Stage, job: Job, played: Played, before: Mapping[str, JobResult]) -> _Contexts:
    named = {name: {"result": before[name].result, "outputs": before[name].outputs} for name in job.depends_on}
    stages = {
        name: {job_name: {"outputs": result.outputs} for (of, job_name), result in played.jobs.items() if of == name}
        for name in stage.depends_on
    }
    results = {name: before[name].result for name in job.depends_on}
    return _Contexts(results, {"dependencies": named, "stageDependencies": stages})


def _status_functions(results: Sequence[str]) -> dict[str, Callable[..., object]]:
    return {
        "succeeded": lambda: all(result == SUCCEEDED for result in results),
        "failed": lambda: FAILED in results,
        "succeededorfailed": lambda: all(result in (SUCCEEDED, FAILED) for result in results),
        "canceled": lambda: False,
        "always": lambda: True,
    }


def _together(results: Sequence[str]) -> str:
    for worst in (FAILED, CANCELED):
        if worst in results:
            return worst
    return SKIPPED if results and all(result == SKIPPED for result in results) else SUCCEEDED


def expanded(value: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced where NAME is known; left as it is where not, as the agent does."""
    known = {name.lower(): text for name, text in variables.items()}
    return _MACRO.sub(lambda match: known.get(match[1].lower(), match[0]), value)


# One job


class _PlayedJob:
    """The steps of one job, one after another."""

    def __init__(self, player: Player, job: Job, directory: Path, variables: dict[str, str], played: Played) -> None:
        self._player = player
        self._job = job
        self._directory = directory
        self._variables = variables
        self._played = played
        self._result = JobResult(SUCCEEDED, directory=directory)
        self._path = ["/usr/local/bin", "/usr/bin", "/bin"]
        self._tasks: Mapping[str, Callable[[Step, Mapping[str, str]], None]] = {
            "checkout": lambda step, inputs: None,
            "script": self._script,
            "AzureCLI": self._azure_cli,
            "UsePythonVersion": self._python,
            "Cache": self._cache,
            "PythonScript": self._environment,
            "PublishTestResults": self._publish_results,
            "PublishCodeCoverageResults": self._publish_coverage,
            "PublishPipelineArtifact": self._publish_artifact,
            "DownloadPipelineArtifact": self._download_artifact,
            "MLPublishedPipelineRestAPITask": self._server_job,
        }

    def run(self) -> JobResult:
        """Play every step whose condition holds."""
        for step in self._job.steps:
            functions = _status_functions([self._result.result])
            if truth(evaluate(parse(step.condition), {"variables": self._variables}, functions)):
                self._step(step)
        return self._result

    def _step(self, step: Step) -> None:
        kind = step.task.partition("@")[0].rpartition(".")[2]
        inputs = {name: expanded(str(value), self._variables) for name, value in step.inputs.items()}
        try:
            if kind not in self._tasks:
                raise StepFailedError(f"the task {step.task} is not known here")
            self._tasks[kind](step, inputs)
        except StepFailedError as error:
            self._result.result = FAILED
            self._result.log += f"\n{step.place}: {error}"

    # Scripts

    def _script(self, step: Step, inputs: Mapping[str, str]) -> None:
        assert step.script is not None
        script = self._with_stand_ins(expanded(step.script.strip(), self._variables))
        self._played.scripts.append(script)
        self._result.log += f"\n$ {script}\n"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", script],
            cwd=self._directory,
            env=self._environ(step),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=280,
        )
        for line in done.stdout.splitlines():
            self._result.log += f"{line}\n"
            if match := _COMMAND.search(line):
                self._obey(match, step)
        if done.returncode:
            raise StepFailedError(f"{script!r} ended with exit code {done.returncode}")

    def _with_stand_ins(self, script: str) -> str:
        words = shlex.split(script)
        played = [
            self._player.stand_in(word, self._played) if before == "--target" or word.startswith("--") else word
            for before, word in zip(["", *words], words, strict=False)
        ]
        return shlex.join(word for word in played if word)

    def _environ(self, step: Step) -> dict[str, str]:
        """What a script's environment is: every variable, the step's ``env``, and nothing of the test's own."""
        environ = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environ |= {name.upper().replace(".", "_"): value for name, value in self._variables.items()}
        environ |= {name: expanded(str(value), self._variables) for name, value in step.env.items()}
        return environ | {
            "PATH": os.pathsep.join(self._path),
            "TF_BUILD": "True",
            "MLOPS_STORE": str(self._player.store),
        }

    def _obey(self, match: re.Match[str], step: Step) -> None:
        pairs = [pair.partition("=") for pair in (match["properties"] or "").split(";") if pair]
        properties = {name: decoded(value) for name, _, value in pairs}
        message = decoded(match["message"])
        self._played.commands.append((match["name"], properties, message))
        if match["name"] == "task.setvariable" and properties.get("isoutput") == "true" and step.name:
            self._result.outputs[f"{step.name}.{properties['variable']}"] = message
        elif match["name"] == "build.addbuildtag":
            self._played.record.tags.append(message)
        elif match["name"] == "task.uploadsummary":
            self._played.summaries.append(Path(message).read_text(encoding="utf-8"))

    def _azure_cli(self, step: Step, inputs: Mapping[str, str]) -> None:
        _given(inputs["azureSubscription"], "the service connection")
        self._script(step, inputs)

    # The environment

    def _python(self, step: Step, inputs: Mapping[str, str]) -> None:
        if inputs["versionSpec"] != "3.11":
            raise StepFailedError(f"Python {inputs['versionSpec']} is not what the Azure ML SDK supports")

    def _cache(self, step: Step, inputs: Mapping[str, str]) -> None:
        if not any((self._directory / part.strip()).is_file() for part in inputs["key"].split("|")):
            raise StepFailedError(f"the cache's key names no file: {inputs['key']}")

    def _environment(self, step: Step, inputs: Mapping[str, str]) -> None:
        environment, lock = inputs["arguments"].split()
        if not (self._directory / inputs["scriptPath"]).is_file() or not (self._directory / lock).is_file():
            raise StepFailedError(f"{inputs['scriptPath']} or {lock} is not there")
        self._path.insert(0, str(Path(sys.executable).parent))

    # Results and artifacts

    def _publish_results(self, step: Step, inputs: Mapping[str, str]) -> None:
        for pattern in inputs["testResultsFiles"].split():
            found = self._directory / pattern
            if not found.is_file():
                raise StepFailedError(f"no results: {pattern}")
            ElementTree.parse(found)

    def _publish_coverage(self, step: Step, inputs: Mapping[str, str]) -> None:
        summary = Path(inputs["summaryFileLocation"])
        if not summary.is_file() or ElementTree.parse(summary).getroot().tag != "coverage":
            raise StepFailedError(f"no coverage: {summary}")

    def _publish_artifact(self, step: Step, inputs: Mapping[str, str]) -> None:
        source = Path(inputs["targetPath"])
        if not source.is_dir():
            raise StepFailedError(f"there is nothing to publish: {source}")
        shutil.copytree(source, self._played.record.artifacts / inputs["artifact"])

    def _download_artifact(self, step: Step, inputs: Mapping[str, str]) -> None:
        source = self._chosen(inputs).artifacts / inputs["artifactName"]
        if not source.is_dir():
            raise StepFailedError(f"artifact {inputs['artifactName']} was not found")
        shutil.copytree(source, Path(inputs["targetPath"]), dirs_exist_ok=True)

    def _chosen(self, inputs: Mapping[str, str]) -> RunRecord:
        """The run to download from."""
        if inputs["buildType"] == "current":
            return self._played.record
        wanted = inputs.get("tags", "")
        for record in reversed(self._player.records):
            if inputs["buildVersionToDownload"] == "specific":
                fits = record.build_id == inputs["pipelineId"]
            else:
                fits = record.branch == inputs["branchName"] and (not wanted or wanted in record.tags)
            if fits:
                return record
        raise StepFailedError(f"no run fits {dict(inputs)}")

    # The agentless job

    def _server_job(self, step: Step, inputs: Mapping[str, str]) -> None:
        """What the Azure ML extension does with its inputs, on the platform of this machine."""
        _given(inputs["azureSubscription"], "the service connection")
        pipeline_id = _given(inputs["PipelineId"], "PipelineId")
        experiment = _given(inputs["ExperimentName"], "ExperimentName")
        try:
            parameters = json.loads(f"{{{inputs['PipelineParameters']}}}")
        except ValueError as error:
            raise StepFailedError(f"PipelineParameters are no JSON inside braces: {error}") from None
        tags = {name: _given(value, name) for name, value in parameters["tags"].items()}
        environ = {"MLOPS_STORE": str(self._player.store), "EXPERIMENT_NAME": experiment}
        settings = Settings.from_env(environ, self._directory)
        platform = open_platform(settings)
        build = Build(tags["BuildId"], tags["BuildUri"])
        run = platform.submit(platform.pipeline(pipeline_id), build, self._directory / "data" / "diabetes.csv")
        lines: list[str] = []
        ended = platform.wait(run, lines.append)
        self._result.log += "\n".join(lines)
        if ended.status is RunStatus.FAILED:
            raise StepFailedError(f"the run failed: {ended.error}")
        if ended.status is RunStatus.CANCELED:
            self._result.result = CANCELED


def _given(value: str, what: str) -> str:
    if not value or "$(" in value:
        raise StepFailedError(f"{what} has no value: {value!r}")
    return value


def make_checkout(root: Path, files: Sequence[Path], directory: Path, extra: Mapping[str, str] | None = None) -> Path:
    """A repository of ``files`` and, by path and content, ``extra``, with one commit: what ``checkout`` gives a job."""
    for path in files:
        copy = directory / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    for name, content in (extra or {}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    git = ["git", "-C", str(directory), "-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "checkout"]):
        subprocess.run([*git, *command], check=True, stdout=subprocess.DEVNULL)
    return directory
