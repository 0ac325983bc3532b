"""Scripts: each calls one task, and the tasks come in the order of ``inv ci``."""

from __future__ import annotations

from collections.abc import Iterator

from ml_service.stages import STAGES
from tools.azure_pipelines.model import Step
from tools.azure_pipelines.rules.subject import Problem, Subject

SETUP_SCRIPT = "requirements/sync.py"

_SHELL_TASKS = ("Bash@", "CmdLine@", "PowerShell@", "AzurePowerShell@")
_SHELL_STEPS = ("bash", "powershell", "pwsh")


def only_tasks(subject: Subject) -> Iterator[Problem]:
    """A script calls a task, and nothing else runs one: the logic of a stage is in its task."""
    for step in subject.pipeline.steps:
        if step.script is not None:
            try:
                subject.task_of(step)
            except ValueError as error:
                yield Problem(step.place, f"{step.script.strip()!r} {error}")
        elif message := _other_script(step):
            yield Problem(step.place, message)


def _other_script(step: Step) -> str:
    if step.task.startswith(_SHELL_TASKS) or step.task in _SHELL_STEPS:
        return f"{step.task} runs a script of its own: call an inv task"
    if step.task.startswith("PythonScript@") and step.inputs.get("scriptPath") != SETUP_SCRIPT:
        return f"{step.task} may run {SETUP_SCRIPT} only: call an inv task"
    return ""


def in_the_order_of_ci(subject: Subject) -> Iterator[Problem]:
    """The first calls of the stages come in the order of ``inv ci``."""
    order = [stage.task for stage in STAGES]
    furthest = ""
    seen: set[str] = set()
    for task, step in subject.calls(list(subject.pipeline.steps)):
        if task not in order or task in seen:
            continue
        seen.add(task)
        if furthest and order.index(task) < order.index(furthest):
            yield Problem(step.place, f"inv {task} comes after inv {furthest}; inv ci has it before")
        furthest = max(task, furthest or task, key=order.index)
