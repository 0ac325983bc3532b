"""``dependsOn``: every name is that of an earlier stage or job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tools.azure_pipelines.model import Job, Stage
from tools.azure_pipelines.rules.subject import Problem, Subject


def exist_before(subject: Subject) -> Iterator[Problem]:
    """A stage waits for earlier stages, a job for earlier jobs of its stage; names are unique."""
    stages: list[str] = []
    for stage in subject.pipeline.stages:
        yield from _known(stage, stages, "stage")
        stages.append(stage.name)
        jobs: list[str] = []
        for job in stage.jobs:
            yield from _known(job, jobs, "job")
            jobs.append(job.name)


def _known(one: Stage | Job, earlier: Sequence[str], kind: str) -> Iterator[Problem]:
    if one.name in earlier:
        yield Problem(one.place, f"there are two {kind}s {one.name!r}")
    for name in one.depends_on:
        if name not in earlier:
            yield Problem(one.place, f"{kind} {one.name!r} depends on {name!r}, and no {kind} before it has that name")
