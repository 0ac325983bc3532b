"""A small repository around the project ``mean_regression``, which trains in milliseconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_service.ports import PipelineDefinition
from ml_service.project import define, read_project

TESTS = Path(__file__).parents[1]
PROJECT = "mean_regression"


def make_repository(root: Path) -> Path:
    """The project, its data, the locks and a scoring folder below ``root``; returns ``root``."""
    shutil.copytree(
        TESTS / "projects" / PROJECT, root / PROJECT, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )
    (root / "requirements").mkdir()
    (root / "requirements" / "all.txt").write_text("a==1\n")
    (root / "requirements" / "scoring.txt").write_text("a==1\n")
    (root / "scoring").mkdir()
    (root / "scoring" / "score.py").write_text("# scores\n")
    write_data(root, [1.0, 2.0, 3.0, 4.0])
    return root


def write_data(root: Path, targets: Sequence[object]) -> Path:
    """Training data with these values of Y; returns the file."""
    path = root / "data" / "mean.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("X,Y\n" + "".join(f"1,{target}\n" for target in targets))
    return path


def set_parameters(root: Path, **changed: Any) -> None:
    """Change the project's parameters: ``shift`` makes it worse the larger it is, ``seconds`` makes it slower."""
    path = root / PROJECT / "parameters.json"
    path.write_text(json.dumps({"shift": 0.0, "min_improvement": 0.0} | changed))


def definition(
    root: Path, model_name: str = "", *, run_evaluation: bool = True, allow_run_cancel: bool = True, **changed: Any
) -> PipelineDefinition:
    """The training pipeline of the project with these parameters."""
    set_parameters(root, **changed)
    parameters = {"run_evaluation": run_evaluation, "allow_run_cancel": allow_run_cancel}
    return define(root, read_project(root, PROJECT), model_name, parameters)
