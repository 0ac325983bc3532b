"""Play an expanded pipeline on this machine, job by job, as Azure would.

Each job runs in a fresh copy of the repository. Jobs share ``store``, which stands for Azure ML, and otherwise only
artifacts and output variables. Scripts run as they are written. Replaced by something that runs here:

- checkout, Python and its environment: by the environment of the test, after a check that the lock exists;
- the server job: by the platform's ``submit`` and ``wait``, from the three inputs that Azure's task gets;
- AzureCLI@2: by its script, after a check of the service connection;
- a target without engine or cluster here: by the one that ``stand_ins`` names. An option that it names is left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.azure_pipelines.expressions import evaluate, parse, truth
from tools.azure_pipelines.job_player import JobPlayer, expanded, status_functions
from tools.azure_pipelines.model import Job, Pipeline, Stage
from tools.azure_pipelines.played import CANCELED, FAILED, SKIPPED, SUCCEEDED, JobResult, Played, RunRecord


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
        """Run a pipeline under a build id. Jobs that ``skip`` names count as succeeded without being played."""
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
        return JobPlayer(self, job, directory, variables, played).run()

    def _variables(self, pipeline: Pipeline, played: Played) -> dict[str, str]:
        """Return the variables of Azure, of the YAML and of the group. Later ones win."""
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
        functions = status_functions(list(contexts.results.values()))
        return truth(evaluate(parse(condition), {**contexts.named, "variables": variables}, functions))

    def _runtime(self, value: str, contexts: _Contexts) -> str:
        match = re.fullmatch(r"\$\[(.*)\]", value)
        result = evaluate(parse(match[1]), contexts.named, {}) if match else value
        return "" if result is None else str(result)

    def stand_in(self, name: str, played: Played) -> str:
        """Return what to play in the place of a target or an option, and record that."""
        if name in self._stand_ins:
            played.stood_in[name] = self._stand_ins[name]
        return self._stand_ins.get(name, name)


@dataclass(frozen=True)
class _Contexts:
    """The values that a condition reads: the results for ``succeeded()``, and the named contexts."""

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


def _together(results: Sequence[str]) -> str:
    for worst in (FAILED, CANCELED):
        if worst in results:
            return worst
    return SKIPPED if results and all(result == SKIPPED for result in results) else SUCCEEDED


def make_checkout(root: Path, files: Sequence[Path], directory: Path, extra: Mapping[str, str] | None = None) -> Path:
    """Make the repository that ``checkout`` gives a job: ``files``, and ``extra`` by path and content."""
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
