"""The rules: what Azure would only tell while a pipeline runs, and what this project demands of its YAML."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service.stages import STAGES
from tools.azure_pipelines.expand import expand
from tools.azure_pipelines.expressions import KNOWN, ExpressionError, Lookup, functions, lookups, parse
from tools.azure_pipelines.model import Job, Pipeline, Stage, Step, read
from tools.azure_pipelines.schema import Schema, official
from tools.azure_pipelines.source import PipelineError, Place, load, place_of

ParseTask = Callable[[Sequence[str]], str]
"""Gives the one task that the words after ``inv`` call; raises ValueError when they are no valid call of one."""

OUTPUTS: Mapping[str, frozenset[str]] = {
    "publish": frozenset({"pipeline_id"}),
    "check-model": frozenset({"model_registered", "model_name", "model_version"}),
    "build-image": frozenset({"image"}),
    "deploy": frozenset({"scoring_url"}),
}
"""The output variables of the tasks, as docs/commands.md names them."""

GROUP = frozenset(
    """BASE_NAME LOCATION RESOURCE_GROUP WORKSPACE_NAME AZURE_RM_SVC_CONNECTION WORKSPACE_SVC_CONNECTION
    ACI_DEPLOYMENT_NAME AKS_DEPLOYMENT_NAME AKS_COMPUTE_NAME WEBAPP_DEPLOYMENT_NAME SP_APP_SECRET""".split()
)
"""What the variable group holds, beside any setting: see docs/azure-pipelines.md."""

PREDEFINED = frozenset(
    """Agent.OS Build.BuildId Build.SourceBranch Build.SourceVersion Pipeline.Workspace System.CollectionUri
    System.DefaultWorkingDirectory System.TeamProject""".split()
)
"""Azure's own variables that we use; another one is added here after a look at its list of predefined variables."""

RESOURCE_FIELDS = frozenset("projectID pipelineName pipelineID runName runID runURI sourceBranch sourceCommit".split())
STATUS = frozenset({"succeeded", "failed", "succeededorfailed", "canceled", "always"})
ONLY_FOR_PYTHON = frozenset({"PYTHONUNBUFFERED"})
SETUP_SCRIPT = "requirements/sync.py"
WITHOUT_AZURE = frozenset({"lint", "test", "coverage", "validate-data", ""})
"""The tasks that ask Azure nothing; "" is check-model with an artifact. Any other one has to be signed in."""
SECRET = "SP_APP_SECRET"

_MACRO = re.compile(r"\$\(([A-Za-z_][\w.]*)\)")
_RUNTIME = re.compile(r"\$\[(.*)\]", re.DOTALL)
_SHELL = re.compile(r"[;&|<>$`(){}\n\\*?!#]")
_GROUP_NAME = re.compile(r"devopsforai-aml-vg(-\w+)?")
_NAMES = re.compile(r"^#?([A-Z][A-Z0-9_]*)=", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """What is wrong with the YAML, and where."""

    place: Place
    message: str


def pipeline_files(folder: Path) -> list[str]:
    """The pipelines in a folder: every file with stages."""
    names = [path.name for path in sorted(folder.glob("*.yml"))]
    return [name for name in names if "stages" in _loaded(folder, name)]


def _loaded(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        return load(folder, name)
    except PipelineError:
        return {"stages": "unreadable: expanding it says why"}


def check(folder: Path, settings_example: Path, parse_task: ParseTask) -> list[Problem]:
    """Everything that is wrong with the pipelines in ``folder``; an empty list is good.

    ``settings_example`` is the file that names every setting. Each pipeline is looked at once for each value that a
    parameter with listed values may have.
    """
    settings = frozenset(_NAMES.findall(settings_example.read_text(encoding="utf-8")))
    schema = official()
    parse_once: ParseTask = functools.cache(parse_task)
    found: dict[Problem, None] = {}
    read_files: set[str] = set()
    for name in pipeline_files(folder):
        for given in _choices(folder, name):
            try:
                raw, files = expand(folder, name, given)
                read_files |= files
                pipeline = read(name, raw)
            except PipelineError as error:
                found[Problem(error.place, error.message)] = None
                continue
            problems = [*_Rules(pipeline, settings, parse_once).problems(), *_by_schema(schema, pipeline)]
            found.update(dict.fromkeys(problems))
    return sorted([*found, *_orphans(folder, read_files)], key=lambda problem: (problem.place.file, problem.place.line))


def _choices(folder: Path, name: str) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = [{}]
    declared = _loaded(folder, name).get("parameters", [])
    for one in declared:
        for value in one.get("values", [])[1:] if isinstance(one, Mapping) else []:
            choices.append({str(one["name"]): value})
        if isinstance(one, Mapping) and one.get("default") == "latest":
            choices.append({str(one["name"]): "4711"})
    return choices


def _by_schema(schema: Schema, pipeline: Pipeline) -> Iterator[Problem]:
    return (Problem(place, message) for place, message in schema.problems(pipeline))


def _orphans(folder: Path, read_files: Collection[str]) -> Iterator[Problem]:
    for path in sorted(folder.rglob("*.yml")):
        name = path.relative_to(folder).as_posix()
        if name not in read_files and "stages" not in (_loaded(folder, name) if "/" not in name else {}):
            yield Problem(Place(name, 1), "no pipeline uses this template")


class _Rules:
    """The rules, applied to one pipeline."""

    def __init__(self, pipeline: Pipeline, settings: Collection[str], parse_task: ParseTask) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._parse_task = parse_task
        self._variables = {name: place for name, place in _declared(pipeline.raw)}
        self._aliases = [str(one["pipeline"]) for one in pipeline.raw.get("resources", {}).get("pipelines", [])]

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong."""
        yield from self._scripts()
        yield from self._order()
        yield from self._dependencies()
        yield from self._macros(self._pipeline.raw)
        yield from self._expressions()
        yield from self._environments()
        yield from self._unread()
        yield from self._signed_in()
        yield from self._agents()
        yield from self._groups()

    # Scripts

    def _scripts(self) -> Iterator[Problem]:
        for step in self._pipeline.steps:
            if step.script is not None:
                try:
                    self._task_of(step)
                except ValueError as error:
                    yield Problem(step.place, f"{step.script.strip()!r} {error}")
            elif step.task.startswith(("Bash@", "CmdLine@", "PowerShell@", "AzurePowerShell@")) or step.task in (
                "bash",
                "powershell",
                "pwsh",
            ):
                yield Problem(step.place, f"{step.task} runs a script of its own: call an inv task")
            elif step.task.startswith("PythonScript@") and step.inputs.get("scriptPath") != SETUP_SCRIPT:
                yield Problem(step.place, f"{step.task} may run {SETUP_SCRIPT} only: call an inv task")

    def _task_of(self, step: Step) -> str:
        """The task that a step runs; ValueError says what is wrong with its script."""
        assert step.script is not None
        script = step.script.strip()
        if _SHELL.search(script):
            raise ValueError("is more than one plain command: put the logic into a task")
        words = shlex.split(script)
        if not words or words[0] != "inv":
            raise ValueError("is no inv task")
        return self._parse_task(tuple(words[1:]))

    def _called(self, steps: Sequence[Step]) -> Iterator[tuple[str, Step]]:
        for step in steps:
            if step.script is not None:
                try:
                    task = self._task_of(step)
                except ValueError:
                    continue
                # Given an artifact, it looks at that and at no build.
                yield task if "--artifact" not in step.script or task != "check-model" else "", step
            elif "MLPublishedPipelineRestAPITask" in step.task:
                yield "train", step

    def _order(self) -> Iterator[Problem]:
        order = [stage.task for stage in STAGES]
        furthest = ""
        seen: set[str] = set()
        for task, step in self._called(list(self._pipeline.steps)):
            if task not in order or task in seen:
                continue
            seen.add(task)
            if furthest and order.index(task) < order.index(furthest):
                yield Problem(step.place, f"inv {task} comes after inv {furthest}; inv ci has it before")
            furthest = max(task, furthest or task, key=order.index)

    # What waits for what

    def _dependencies(self) -> Iterator[Problem]:
        earlier: list[str] = []
        for stage in self._pipeline.stages:
            yield from self._known(stage.name, stage.depends_on, earlier, stage.place, "stage")
            earlier.append(stage.name)
            before: list[str] = []
            for job in stage.jobs:
                yield from self._known(job.name, job.depends_on, before, job.place, "job")
                before.append(job.name)

    def _known(
        self, name: str, wanted: Sequence[str], earlier: Sequence[str], place: Place, kind: str
    ) -> Iterator[Problem]:
        if name in earlier:
            yield Problem(place, f"there are two {kind}s {name!r}")
        for one in wanted:
            if one not in earlier:
                yield Problem(place, f"{kind} {name!r} depends on {one!r}, and no {kind} before it has that name")

    # Variables

    def _macros(self, value: Any, key: str = "") -> Iterator[Problem]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                # The run's number has a language of its own.
                if not (value is self._pipeline.raw and name == "name"):
                    yield from self._macros(inner, str(name))
        elif isinstance(value, list):
            for item in value:
                yield from self._macros(item, key)
        else:
            for name in _MACRO.findall(str(value)):
                if not self._defined(name, value):
                    yield Problem(place_of(value, self._pipeline.raw.place), f"nothing defines the variable {name!r}")

    def _defined(self, name: str, place: object = None) -> bool:
        head, _, rest = name.partition("resources.pipeline.")
        if not head and rest:
            alias, _, member = rest.partition(".")
            return alias in self._aliases and member in RESOURCE_FIELDS
        return name in self._variables or name in PREDEFINED or self._from_group(name) or name in self._mapped()

    def _from_group(self, name: str) -> bool:
        return any("group" in one for one in _listed(self._pipeline.raw)) and name in {*GROUP, *self._settings}

    def _mapped(self) -> set[str]:
        return {name for _, job in self._pipeline.jobs for name, _ in _declared(job.raw)}

    # Conditions and runtime expressions

    def _expressions(self) -> Iterator[Problem]:
        for stage in self._pipeline.stages:
            yield from self._expression(stage.condition, stage, None, place_of(stage.raw.get("condition"), stage.place))
            for job in stage.jobs:
                where = place_of(job.raw.get("condition"), job.place)
                yield from self._expression(job.condition, stage, job, where)
                for value in _values(job.raw.get("variables", {})):
                    if match := _RUNTIME.fullmatch(value):
                        yield from self._expression(match[1], stage, job, place_of(value, job.place))
                for step in job.steps:
                    yield from self._expression(step.condition, stage, job, step.place)

    def _expression(self, source: str, stage: Stage, job: Job | None, place: Place) -> Iterator[Problem]:
        try:
            expression = parse(source)
        except ExpressionError as error:
            yield Problem(place, f"the condition {source!r} {error}")
            return
        for name in functions(expression):
            if name not in {*KNOWN, *STATUS}:
                yield Problem(place, f"the function {name}() of {source!r} is not known here")
        for lookup in lookups(expression):
            if message := self._lookup(lookup, stage, job):
                yield Problem(place, message)

    def _lookup(self, lookup: Lookup, stage: Stage, job: Job | None) -> str:
        names = lookup.names
        context, rest = names[0], names[1:]
        if context == "variables":
            return "" if rest and self._defined(rest[0]) else f"nothing defines the variable {'.'.join(rest)!r}"
        if context == "stageDependencies" and job:
            return self._of_stages(rest, stage)
        if context == "dependencies" and job:
            return self._of_jobs(rest, job, stage)
        if context == "dependencies":
            # Of a stage: dependencies.STAGE.result, or dependencies.STAGE.outputs['JOB.STEP.VARIABLE'].
            if len(rest) == 3 and rest[1] == "outputs":
                inner, _, output = rest[2].partition(".")
                return self._of_stages((rest[0], inner, "outputs", output), stage)
            known = len(rest) == 2 and rest[1] == "result" and rest[0] in stage.depends_on
            return "" if known else f"{'.'.join(names)} is nothing that stage {stage.name!r} depends on"
        return f"there is no {context!r} in a condition here"

    def _of_stages(self, rest: Sequence[str], stage: Stage) -> str:
        if len(rest) != 4 or rest[2] != "outputs":
            return f"{'.'.join(rest)!r} is no output: STAGE.JOB.outputs['STEP.VARIABLE']"
        if rest[0] not in stage.depends_on:
            return f"stage {stage.name!r} reads an output of {rest[0]!r} and does not depend on it"
        source = self._pipeline.stage(rest[0])
        job = source.job(rest[1]) if source else None
        return self._output(job, rest[3]) if job else f"stage {rest[0]!r} has no job {rest[1]!r}"

    def _of_jobs(self, rest: Sequence[str], job: Job, stage: Stage) -> str:
        other = stage.job(rest[0]) if rest and rest[0] in job.depends_on else None
        if not other or len(rest) < 2:
            return f"job {job.name!r} does not depend on {'.'.join(rest)!r}"
        return "" if rest[1] == "result" else self._output(other, rest[-1])

    def _output(self, job: Job, output: str) -> str:
        name, _, variable = output.partition(".")
        named = [step for step in job.steps if step.name == name]
        tasks = [task for task, _ in self._called(named)]
        if not named:
            return f"job {job.name!r} has no step {name!r}"
        sets = OUTPUTS.get(tasks[0] if tasks else "", frozenset())
        return "" if variable in sets else f"step {name!r} sets no output {variable!r}; it sets: {sorted(sets)}"

    # What reaches the tasks

    def _environments(self) -> Iterator[Problem]:
        for step in self._pipeline.steps:
            for name in step.env:
                if name not in self._settings and name not in ONLY_FOR_PYTHON:
                    yield Problem(place_of(name, step.place), f"no task reads {name!r} from the environment")

    def _unread(self) -> Iterator[Problem]:
        """A variable that no task and no line reads is most likely misspelt."""
        text = repr(self._pipeline.raw)
        for name, place in self._variables.items():
            if name not in self._settings and f"$({name})" not in text and f"variables['{name}']" not in text:
                yield Problem(place, f"nothing reads the variable {name!r}: it is no setting of the tasks")

    # What a task needs around it

    def _signed_in(self) -> Iterator[Problem]:
        """A secret reaches a step by ``env`` alone, and a sign-in by AzureCLI@2 alone."""
        for task, step in self._called(list(self._pipeline.steps)):
            if step.script is None or task in WITHOUT_AZURE:
                continue
            if step.task != "AzureCLI@2":
                yield Problem(step.place, f"inv {task} asks Azure and is not signed in: run it in AzureCLI@2")
            elif step.env.get(SECRET) != f"$({SECRET})":
                yield Problem(step.place, f"inv {task} asks Azure and gets no {SECRET} by env")

    def _agents(self) -> Iterator[Problem]:
        """A script needs an agent, and our sources on it: a deployment job fetches none by itself."""
        for _, job in self._pipeline.jobs:
            ours = [at for at, step in enumerate(job.steps) if step.script is not None]
            fetched = [at for at, step in enumerate(job.steps) if step.raw.get("checkout") == "self"]
            if ours and job.is_server:
                yield Problem(job.place, f"job {job.name!r} runs scripts, and pool: server has no agent to run them")
            if ours and (not fetched or fetched[0] > ours[0]):
                yield Problem(job.place, f"job {job.name!r} runs scripts without checkout: self before them")

    def _groups(self) -> Iterator[Problem]:
        """A group that is not there fails the whole pipeline before its first stage."""
        for raw in (self._pipeline.raw, *(stage.raw for stage in self._pipeline.stages)):
            for name in (one["group"] for one in _listed(raw) if "group" in one):
                if not _GROUP_NAME.fullmatch(str(name)):
                    message = f"the guide knows no variable group {str(name)!r}: devopsforai-aml-vg, or that and -NAME"
                    yield Problem(place_of(name, self._pipeline.raw.place), message)


def _listed(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    variables = raw.get("variables", [])
    return list(variables) if isinstance(variables, list) else []


def _declared(raw: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """The variables that a pipeline or job declares, in either notation."""
    variables = raw.get("variables", [])
    if isinstance(variables, Mapping):
        yield from ((str(name), place_of(name, Place("", 1))) for name in variables)
    for one in _listed(raw):
        if "name" in one:
            yield str(one["name"]), place_of(one["name"], Place("", 1))


def _values(variables: Any) -> list[Any]:
    if isinstance(variables, Mapping):
        return list(variables.values())
    return [one["value"] for one in variables if "value" in one]
