"""Conditions and runtime expressions: they can be read, and every name in them leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.azure_pipelines.expressions import KNOWN, ExpressionError, Lookup, functions, lookups, parse
from tools.azure_pipelines.model import Job, Stage
from tools.azure_pipelines.rules.subject import Problem, Subject
from tools.azure_pipelines.source import Place, place_of

OUTPUTS: Mapping[str, frozenset[str]] = {
    "publish": frozenset({"pipeline_id"}),
    "check-model": frozenset({"model_registered", "model_name", "model_version"}),
    "build-image": frozenset({"image"}),
    "deploy": frozenset({"scoring_url"}),
}
"""The output variables that each task sets, as docs/commands.md names them."""

STATUS = frozenset({"succeeded", "failed", "succeededorfailed", "canceled", "always"})

_RUNTIME = re.compile(r"\$\[(.*)\]", re.DOTALL)


def are_valid(subject: Subject) -> Iterator[Problem]:
    """Check every condition, and every variable whose value is computed at run time."""
    for stage in subject.pipeline.stages:
        in_stage = _Scope(subject, stage, None)
        yield from in_stage.problems(stage.condition, place_of(stage.raw.get("condition"), stage.place))
        for job in stage.jobs:
            in_job = _Scope(subject, stage, job)
            yield from in_job.problems(job.condition, place_of(job.raw.get("condition"), job.place))
            for value in _values(job.raw.get("variables", {})):
                if match := _RUNTIME.fullmatch(value):
                    yield from in_job.problems(match[1], place_of(value, job.place))
            for step in job.steps:
                yield from in_job.problems(step.condition, step.place)


@dataclass(frozen=True)
class _Scope:
    """Where an expression stands: it may read the outputs of what its stage and its job depend on."""

    subject: Subject
    stage: Stage
    job: Job | None

    def problems(self, source: str, place: Place) -> Iterator[Problem]:
        """Check one expression."""
        try:
            expression = parse(source)
        except ExpressionError as error:
            yield Problem(place, f"the condition {source!r} {error}")
            return
        for name in functions(expression):
            if name not in {*KNOWN, *STATUS}:
                yield Problem(place, f"the function {name}() of {source!r} is not known here")
        for lookup in lookups(expression):
            if message := self._lookup(lookup):
                yield Problem(place, message)

    def _lookup(self, lookup: Lookup) -> str:
        context, *rest = lookup.names
        if context == "variables":
            known = rest and self.subject.defines(rest[0])
            return "" if known else f"nothing defines the variable {'.'.join(rest)!r}"
        if context == "stageDependencies" and self.job:
            return self._of_stages(rest)
        if context == "dependencies":
            return self._of_jobs(rest, self.job) if self.job else self._of_stage_condition(rest)
        return f"there is no {context!r} in a condition here"

    def _of_stage_condition(self, rest: Sequence[str]) -> str:
        """Check ``dependencies.STAGE.result`` or ``dependencies.STAGE.outputs['JOB.STEP.VARIABLE']``."""
        if len(rest) == 3 and rest[1] == "outputs":
            inner, _, output = rest[2].partition(".")
            return self._of_stages((rest[0], inner, "outputs", output))
        known = len(rest) == 2 and rest[1] == "result" and rest[0] in self.stage.depends_on
        path = ".".join(("dependencies", *rest))
        return "" if known else f"stage {self.stage.name!r} does not depend on what {path} reads"

    def _of_stages(self, rest: Sequence[str]) -> str:
        if len(rest) != 4 or rest[2] != "outputs":
            return f"not an output: {'.'.join(rest)!r}; expected STAGE.JOB.outputs['STEP.VARIABLE']"
        if rest[0] not in self.stage.depends_on:
            return f"stage {self.stage.name!r} reads an output of {rest[0]!r} and does not depend on it"
        source = self.subject.pipeline.stage(rest[0])
        job = source.job(rest[1]) if source else None
        return self._output(job, rest[3]) if job else f"stage {rest[0]!r} has no job {rest[1]!r}"

    def _of_jobs(self, rest: Sequence[str], job: Job) -> str:
        other = self.stage.job(rest[0]) if rest and rest[0] in job.depends_on else None
        if not other or len(rest) < 2:
            return f"job {job.name!r} does not depend on {'.'.join(rest)!r}"
        return "" if rest[1] == "result" else self._output(other, rest[-1])

    def _output(self, job: Job, output: str) -> str:
        name, _, variable = output.partition(".")
        named = [step for step in job.steps if step.name == name]
        tasks = [task for task, _ in self.subject.calls(named)]
        if not named:
            return f"job {job.name!r} has no step {name!r}"
        outputs = OUTPUTS.get(tasks[0] if tasks else "", frozenset())
        return "" if variable in outputs else f"step {name!r} sets no output {variable!r}; it sets: {sorted(outputs)}"


def _values(variables: Any) -> list[Any]:
    if isinstance(variables, Mapping):
        return list(variables.values())
    return [one["value"] for one in variables if "value" in one]
