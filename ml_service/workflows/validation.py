"""Let the project validate the data that it would train on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ml_service import project
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.errors import (
    DataError,
)
from ml_service.workflows.training import data_file

_MOST_FINDINGS = 50
"""Problems that are reported one by one: the page of an Azure Pipelines run shows a few only."""


def validate_data(settings: Settings, console: Console, data: str = "") -> None:
    """Let the project validate the data that it would train on, or the file ``data``.

    Raises:
        DataError: the data has a problem. Each problem has been reported with its file and line.
    """
    definition = project.read_project(settings.root, settings.project)
    file = Path(data).absolute() if data else data_file(settings, definition)
    reference = ["--reference", definition.reference] if definition.reference else []
    with tempfile.TemporaryDirectory(prefix="mlops-validate-") as directory:
        report = Path(directory) / "report.json"
        arguments = ["validate", "--data", str(file), *reference, "--report", str(report)]
        try:
            project.run_step(definition.name, arguments, settings.root, settings.env, console.line)
        except DataError:
            _show_problems(settings, console, report)
            raise


def _show_problems(settings: Settings, console: Console, report: Path) -> None:
    """Report each problem with its file and line, which Azure Pipelines shows. The error names only the first."""
    if not report.is_file():
        return
    for problem in project.read_step_json(report).get("problems", [])[:_MOST_FINDINGS]:
        place = Path(str(problem.get("file", "")))
        shown = place.relative_to(settings.root) if place.is_relative_to(settings.root) else place
        column = f"column {problem['column']}: " if problem.get("column") else ""
        console.finding(f"{column}{problem.get('message', '')}", f"{shown}:{problem.get('row') or 1}")
