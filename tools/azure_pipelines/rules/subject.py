"""One pipeline as the rules read it: its tasks, and the names that are defined in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.azure_pipelines.model import Pipeline, Step
from tools.azure_pipelines.source import Place, place_of

ParseTask = Callable[[Sequence[str]], str]
"""Returns the one task that the words after ``inv`` call; raises ValueError when they are not a valid call of one."""

GROUP = frozenset(
    """BASE_NAME LOCATION RESOURCE_GROUP WORKSPACE_NAME AZURE_RM_SVC_CONNECTION WORKSPACE_SVC_CONNECTION
    ACI_DEPLOYMENT_NAME AKS_DEPLOYMENT_NAME AKS_COMPUTE_NAME WEBAPP_DEPLOYMENT_NAME SP_APP_SECRET""".split()
)
"""The variable group's content besides any setting: see docs/azure-pipelines.md."""

PREDEFINED = frozenset(
    """Agent.OS Build.BuildId Build.SourceBranch Build.SourceVersion Pipeline.Workspace System.CollectionUri
    System.DefaultWorkingDirectory System.TeamProject""".split()
)
"""Azure's own variables that are used here. Add another one after a look at its list of predefined variables."""

RESOURCE_FIELDS = frozenset("projectID pipelineName pipelineID runName runID runURI sourceBranch sourceCommit".split())

_SHELL = re.compile(r"[;&|<>$`(){}\n\\*?!#]")


@dataclass(frozen=True)
class Problem:
    """A mistake in the YAML, and its place."""

    place: Place
    message: str


class Subject:
    """The pipeline that the rules are applied to. ``settings`` are the names of all settings of the tasks."""

    def __init__(self, pipeline: Pipeline, settings: Collection[str], parse_task: ParseTask) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.variables = dict(declared(pipeline.raw))
        self._parse_task = parse_task
        self._aliases = [str(one["pipeline"]) for one in pipeline.raw.get("resources", {}).get("pipelines", [])]
        self._of_jobs = {name for _, job in pipeline.jobs for name, _ in declared(job.raw)}

    def task_of(self, step: Step) -> str:
        """Return the task that a step's script calls.

        Raises:
            ValueError: the script is not one call of one task; the message continues a sentence about the script.
        """
        assert step.script is not None
        script = step.script.strip()
        if _SHELL.search(script):
            raise ValueError("is more than one plain command: put the logic into a task")
        words = shlex.split(script)
        if not words or words[0] != "inv":
            raise ValueError("is not an inv task: expected inv TASK")
        return self._parse_task(tuple(words[1:]))

    def calls(self, steps: Sequence[Step]) -> Iterator[tuple[str, Step]]:
        """Yield each call of a task with its step; "" stands for check-model with an artifact, which asks no build."""
        for step in steps:
            if step.script is not None:
                try:
                    task = self.task_of(step)
                except ValueError:
                    continue
                yield task if "--artifact" not in step.script or task != "check-model" else "", step
            elif "MLPublishedPipelineRestAPITask" in step.task:
                yield "train", step

    def defines(self, name: str) -> bool:
        """Return whether a variable of that name has a value when a step runs."""
        head, _, rest = name.partition("resources.pipeline.")
        if not head and rest:
            alias, _, member = rest.partition(".")
            return alias in self._aliases and member in RESOURCE_FIELDS
        return name in self.variables or name in PREDEFINED or self._from_group(name) or name in self._of_jobs

    def _from_group(self, name: str) -> bool:
        return any("group" in one for one in listed(self.pipeline.raw)) and name in {*GROUP, *self.settings}


def listed(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of ``variables`` in the notation of a list, none in that of a mapping."""
    variables = raw.get("variables", [])
    return list(variables) if isinstance(variables, list) else []


def declared(raw: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """Yield the variables that a pipeline or job declares, in either notation, with their places."""
    variables = raw.get("variables", [])
    if isinstance(variables, Mapping):
        yield from ((str(name), place_of(name, Place("", 1))) for name in variables)
    for one in listed(raw):
        if "name" in one:
            yield str(one["name"]), place_of(one["name"], Place("", 1))
