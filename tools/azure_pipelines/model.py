"""An expanded pipeline as stages, jobs and steps, with the defaults that Azure fills in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.azure_pipelines.source import List, Map, PipelineError, Place

SERVER = "server"


@dataclass(frozen=True)
class Step:
    """One step. ``script`` is its command line where it runs one, by itself or signed in through AzureCLI@2."""

    raw: Map
    place: Place

    @property
    def task(self) -> str:
        """``NAME@VERSION``, or ``checkout``, ``script``, ``download``."""
        return str(self.raw.get("task") or next(iter(self.raw)))

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The task's inputs."""
        return dict(self.raw.get("inputs", {}))

    @property
    def script(self) -> str | None:
        """The command line, or None."""
        if self.task == "script":
            return str(self.raw["script"])
        if self.task.startswith("AzureCLI@"):
            return str(self.inputs.get("inlineScript", ""))
        return None

    @property
    def name(self) -> str:
        """The name under which its output variables are read."""
        return str(self.raw.get("name", ""))

    @property
    def condition(self) -> str:
        """The condition under which it runs."""
        return str(self.raw.get("condition", "succeeded()"))

    @property
    def env(self) -> Mapping[str, str]:
        """The variables that its environment gets."""
        return dict(self.raw.get("env", {}))


@dataclass(frozen=True)
class Job:
    """A job, a deployment job, or an agentless one."""

    name: str
    raw: Map
    place: Place
    depends_on: Sequence[str]
    steps: Sequence[Step]

    @property
    def is_server(self) -> bool:
        """True when it runs without an agent."""
        return self.raw.get("pool") == SERVER

    @property
    def condition(self) -> str:
        """The condition under which it runs."""
        return str(self.raw.get("condition", "succeeded()"))


@dataclass(frozen=True)
class Stage:
    """A stage; it waits for ``depends_on``."""

    name: str
    raw: Map
    place: Place
    depends_on: Sequence[str]
    jobs: Sequence[Job]

    @property
    def condition(self) -> str:
        """The condition under which it runs."""
        return str(self.raw.get("condition", "succeeded()"))

    def job(self, name: str) -> Job | None:
        """Return the job of that name, or None."""
        return next((job for job in self.jobs if job.name == name), None)


@dataclass(frozen=True)
class Pipeline:
    """A whole pipeline."""

    file: str
    raw: Map
    stages: Sequence[Stage] = field(default_factory=tuple)

    def stage(self, name: str) -> Stage | None:
        """Return the stage of that name, or None."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def jobs(self) -> Iterator[tuple[Stage, Job]]:
        """Every job with its stage, in the order of the file."""
        return ((stage, job) for stage in self.stages for job in stage.jobs)

    @property
    def steps(self) -> Iterator[Step]:
        """Every step, in the order of the file."""
        return (step for _, job in self.jobs for step in job.steps)


def read(file: str, raw: Map) -> Pipeline:
    """Return the model of an expanded document.

    Raises:
        PipelineError: a stage or job is not of the shape that is used here.
    """
    stages: list[Stage] = []
    for each in raw.get("stages", []):
        # Without dependsOn a stage waits for the one before it.
        before = [stages[-1].name] if stages else []
        jobs = [_job(job) for job in each.get("jobs", [])]
        depends_on = _names(each["dependsOn"]) if "dependsOn" in each else before
        stages.append(Stage(_text(each, "stage"), each, each.place, depends_on, jobs))
    if not stages:
        raise PipelineError("has no stages", raw.place)
    return Pipeline(file, raw, stages)


def _text(mapping: Map, key: str) -> str:
    if key not in mapping:
        raise PipelineError(f"lacks {key!r}", mapping.place)
    return str(mapping[key])


def _names(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, List) else [str(value)]


def _job(raw: Map) -> Job:
    name = str(raw["deployment"]) if "deployment" in raw else _text(raw, "job")
    depends_on = _names(raw["dependsOn"]) if "dependsOn" in raw else []
    return Job(name, raw, raw.place, depends_on, [Step(step, step.place) for step in _steps(raw)])


def _steps(raw: Map) -> Sequence[Map]:
    if "deployment" not in raw:
        return list(raw.get("steps", []))
    try:
        return list(raw["strategy"]["runOnce"]["deploy"]["steps"])
    except (KeyError, TypeError):
        raise PipelineError("a deployment job has strategy: runOnce: deploy: steps", raw.place) from None
