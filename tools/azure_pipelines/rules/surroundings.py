"""The surroundings that a task needs: a sign-in, an agent with the sources, a variable group that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.azure_pipelines.rules.subject import Problem, Subject, listed
from tools.azure_pipelines.source import place_of

WITHOUT_AZURE = frozenset({"lint", "test", "coverage", "validate-data", ""})
"""The tasks that call nothing in Azure; "" is check-model with an artifact. Any other one has to be signed in."""

SECRET = "SP_APP_SECRET"

_GROUP_NAME = re.compile(r"devopsforai-aml-vg(-\w+)?")


def tasks_are_signed_in(subject: Subject) -> Iterator[Problem]:
    """A secret reaches a step by ``env`` alone, and a sign-in by AzureCLI@2 alone."""
    for task, step in subject.calls(list(subject.pipeline.steps)):
        if step.script is None or task in WITHOUT_AZURE:
            continue
        if step.task != "AzureCLI@2":
            yield Problem(step.place, f"inv {task} calls Azure and is not signed in: run it in AzureCLI@2")
        elif step.env.get(SECRET) != f"$({SECRET})":
            yield Problem(step.place, f"inv {task} calls Azure and gets no {SECRET} by env")


def scripts_have_an_agent(subject: Subject) -> Iterator[Problem]:
    """A script needs an agent with the sources on it. A deployment job does not check them out by itself."""
    for _, job in subject.pipeline.jobs:
        scripts = [at for at, step in enumerate(job.steps) if step.script is not None]
        checkouts = [at for at, step in enumerate(job.steps) if step.raw.get("checkout") == "self"]
        if scripts and job.is_server:
            yield Problem(job.place, f"job {job.name!r} runs scripts, and pool: server has no agent to run them")
        if scripts and (not checkouts or checkouts[0] > scripts[0]):
            yield Problem(job.place, f"job {job.name!r} runs scripts without checkout: self before them")


def groups_are_known(subject: Subject) -> Iterator[Problem]:
    """A group that does not exist fails the whole pipeline before its first stage."""
    raw_pipeline = subject.pipeline.raw
    for raw in (raw_pipeline, *(stage.raw for stage in subject.pipeline.stages)):
        for name in (one["group"] for one in listed(raw) if "group" in one):
            if not _GROUP_NAME.fullmatch(str(name)):
                message = f"the guide knows no variable group {str(name)!r}: devopsforai-aml-vg, or that and -NAME"
                yield Problem(place_of(name, raw_pipeline.place), message)
