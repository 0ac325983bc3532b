"""Play one job: its steps in order, with the agent's variables, logging commands and tasks."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

from ml_service.config import Settings
from ml_service.platforms import open_platform
from ml_service.ports import Build, RunStatus
from tools.azure_pipelines.expressions import evaluate, parse, truth
from tools.azure_pipelines.model import Job, Step
from tools.azure_pipelines.played import CANCELED, FAILED, SUCCEEDED, JobResult, Played, RunRecord, StepFailedError

_COMMAND = re.compile(r"##vso\[(?P<name>[\w.]+)(?: (?P<properties>[^\]]*))?\](?P<message>.*)")
_MACRO = re.compile(r"\$\(([A-Za-z_][\w.]*)\)")
_INHERITED = ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
_CODES = {"%3B": ";", "%5D": "]", "%0D": "\r", "%0A": "\n", "%AZP25": "%"}


class Project(Protocol):
    """The Azure DevOps project that a job runs in."""

    store: Path
    records: list[RunRecord]

    def stand_in(self, name: str, played: Played) -> str:
        """Return what to play in the place of a target or an option."""


def decoded(value: str) -> str:
    """Decode a message or property of a logging command as the agent does."""
    for code, character in _CODES.items():
        value = value.replace(code, character)
    return value


def expanded(value: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by the variable's value. As the agent does, leave it where there is no such variable."""
    known = {name.lower(): text for name, text in variables.items()}
    return _MACRO.sub(lambda match: known.get(match[1].lower(), match[0]), value)


def status_functions(results: Sequence[str]) -> dict[str, Callable[..., object]]:
    """Return the functions that a condition may call to read the results of what it depends on."""
    return {
        "succeeded": lambda: all(result == SUCCEEDED for result in results),
        "failed": lambda: FAILED in results,
        "succeededorfailed": lambda: all(result in (SUCCEEDED, FAILED) for result in results),
        "canceled": lambda: False,
        "always": lambda: True,
    }


class JobPlayer:
    """Plays the steps of one job, one after another, and collects its result."""

    def __init__(self, project: Project, job: Job, directory: Path, variables: dict[str, str], played: Played) -> None:
        self._project = project
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
            functions = status_functions([self._result.result])
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
            self._project.stand_in(word, self._played) if before == "--target" or word.startswith("--") else word
            for before, word in zip(["", *words], words, strict=False)
        ]
        return shlex.join(word for word in played if word)

    def _environ(self, step: Step) -> dict[str, str]:
        """Return a script's environment: every variable, the step's ``env``, and nothing of the test's own."""
        environ = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environ |= {name.upper().replace(".", "_"): value for name, value in self._variables.items()}
        environ |= {name: expanded(str(value), self._variables) for name, value in step.env.items()}
        return environ | {
            "PATH": os.pathsep.join(self._path),
            "TF_BUILD": "True",
            "MLOPS_STORE": str(self._project.store),
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
        _require(inputs["azureSubscription"], "the service connection")
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
            raise StepFailedError(f"{inputs['scriptPath']} or {lock} does not exist")
        self._path.insert(0, str(Path(sys.executable).parent))

    # Results and artifacts

    def _publish_results(self, step: Step, inputs: Mapping[str, str]) -> None:
        for pattern in inputs["testResultsFiles"].split():
            results = self._directory / pattern
            if not results.is_file():
                raise StepFailedError(f"no results: {pattern}")
            ElementTree.parse(results)

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
        """Return the run to download from."""
        if inputs["buildType"] == "current":
            return self._played.record
        wanted = inputs.get("tags", "")
        for record in reversed(self._project.records):
            if inputs["buildVersionToDownload"] == "specific":
                fits = record.build_id == inputs["pipelineId"]
            else:
                fits = record.branch == inputs["branchName"] and (not wanted or wanted in record.tags)
            if fits:
                return record
        raise StepFailedError(f"no run fits {dict(inputs)}")

    # The agentless job

    def _server_job(self, step: Step, inputs: Mapping[str, str]) -> None:
        """Do what the Azure ML extension does with its inputs, on the platform of this machine."""
        _require(inputs["azureSubscription"], "the service connection")
        pipeline_id = _require(inputs["PipelineId"], "PipelineId")
        experiment = _require(inputs["ExperimentName"], "ExperimentName")
        try:
            parameters = json.loads(f"{{{inputs['PipelineParameters']}}}")
        except ValueError as error:
            raise StepFailedError(f"invalid PipelineParameters: expected JSON inside braces: {error}") from None
        tags = {name: _require(value, name) for name, value in parameters["tags"].items()}
        environ = {"MLOPS_STORE": str(self._project.store), "EXPERIMENT_NAME": experiment}
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


def _require(value: str, what: str) -> str:
    if not value or "$(" in value:
        raise StepFailedError(f"{what} has no value: {value!r}")
    return value
