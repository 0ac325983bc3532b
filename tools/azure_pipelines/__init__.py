"""Read Azure Pipelines' YAML as Azure does: expand templates, evaluate conditions, look up every name.

Source: https://learn.microsoft.com/azure/devops/pipelines/process/templates and …/expressions. Only what
``.azure-pipelines`` uses is known here. Anything else is an error and not silently accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_service.errors import ConfigurationError

if TYPE_CHECKING:
    from ml_service.console import Console

FOLDER = ".azure-pipelines"


def diagnose(root: Path, console: Console, parse_task: Callable[[Sequence[str]], str]) -> None:
    """Check every pipeline of the repository ``root``, and print each problem with its file and line.

    ``parse_task`` returns the task that the words after ``inv`` call; it is that of tasks.py.

    Raises:
        ConfigurationError: a pipeline has a problem, or PyYAML is not installed.
    """
    try:
        from tools.azure_pipelines.check import check, pipeline_files
    except ImportError as error:
        raise ConfigurationError(
            f"PyYAML is not installed ({error})",
            where="doctor --pipelines",
            next_step="pip install --require-hashes -r requirements/ci.txt",
        ) from None
    folder = root / FOLDER
    problems = check(folder, root / ".env.example", parse_task)
    for problem in problems:
        console.line(f"FAIL {FOLDER}/{problem.place}: {problem.message}")
        console.finding(problem.message, f"{FOLDER}/{problem.place}")
    if problems:
        raise ConfigurationError(f"{len(problems)} problems in the pipelines", where=FOLDER, next_step="see above")
    console.line(f"ok   {', '.join(pipeline_files(folder))}: nothing found")
