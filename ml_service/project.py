"""An ML project as a process: ``python -m PROJECT STEP …``. See docs/project-contract.md."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service.config import is_plain
from ml_service.errors import BY_EXIT_CODE, ConfigurationError, DataError, MlopsError, UsageError
from ml_service.package import sha256_of
from ml_service.ports import PipelineDefinition, Progress
from ml_service.telemetry import SWITCHES

LOCK = "requirements/all.txt"
"""The one resolution: every lock, also that of scoring, is a subset of it."""

# What a step may see of our environment: it needs an interpreter, a locale and its threads, and no secret.
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "TEMP", "SYSTEMROOT", "VIRTUAL_ENV")
_PASSED_ON_PREFIXES = ("LC_", "OMP_", "OPENBLAS_", "MKL_", "PYTHON", "COVERAGE_", "COV_")


@dataclass(frozen=True)
class Project:
    """The content of ``project.json``. Paths are relative to the repository."""

    name: str
    model_name: str
    data: str
    reference: str
    metric: str
    direction: str
    runtime: str


def read_project(root: Path, name: str) -> Project:
    """Read ``root/name/project.json``.

    Raises:
        UsageError: there is no such project.
        ConfigurationError: the file is not what docs/project-contract.md says; names what is wrong.
    """
    path = root / name / "project.json"
    hint = "see docs/project-contract.md"
    try:
        raw = json.loads(path.read_bytes())
        project = Project(
            name=name,
            model_name=raw["model_name"],
            data=raw["data"],
            reference=raw.get("reference", ""),
            metric=raw["metric"]["name"],
            direction=raw["metric"]["direction"],
            runtime=raw["runtime"],
        )
    except FileNotFoundError:
        raise UsageError("there is no such project", where=str(path), next_step=hint) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"is not a project's description ({error!r})", where=str(path), next_step=hint
        ) from None
    if not is_plain(str(project.model_name)):
        raise ConfigurationError(
            "model_name is a plain name: letters, digits, dots, dashes or underscores", where=str(path), next_step=hint
        )
    if project.direction not in ("lower", "higher") or project.runtime not in ("onnx", "script"):
        raise ConfigurationError(
            "metric.direction is lower or higher, runtime is onnx or script", where=str(path), next_step=hint
        )
    return project


def define(root: Path, project: Project, model_name: str, parameters: Mapping[str, bool]) -> PipelineDefinition:
    """Return the training pipeline of a project as its files are now: sources, parameters and the lock."""
    sources = [
        path
        for path in sorted((root / project.name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    ]
    lock = root / LOCK
    files = {path.relative_to(root).as_posix(): sha256_of(path) for path in [*sources, lock] if path.is_file()}
    if LOCK not in files:
        raise ConfigurationError("the lock is missing", where=str(lock), next_step="run: make lock")
    return PipelineDefinition(
        project=project.name,
        model_name=model_name or project.model_name,
        root=root,
        files=files,
        parameters=dict(parameters),
        lock_sha256=files[LOCK],
    )


class StepProcess:
    """One step, started. Its standard output is progress, the last line on standard error is what went wrong."""

    def __init__(self, project: str, arguments: Sequence[str], directory: Path, env: Mapping[str, str]) -> None:
        self.step = arguments[0]
        self._where = f"python -m {project} {self.step}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", project, *arguments],
            cwd=directory,
            env=step_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def finish(self, progress: Progress) -> None:
        """Wait for the end, passing on each line.

        Raises:
            MlopsError: the step failed; of the kind that its exit code names.
        """
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            last = line.rstrip() or last
            progress(line.rstrip())
        code = self._process.wait()
        if code:
            raise self._failure(code, last)

    def stop(self) -> None:
        """End the step, whatever it does; a step that has ended is left alone."""
        self._process.kill()
        self._process.wait()

    def _failure(self, code: int, last: str) -> MlopsError:
        if code in BY_EXIT_CODE:
            return BY_EXIT_CODE[code](last.removeprefix("error: "), where=self._where)
        died = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return MlopsError(f"{died}: {last}" if last else died, where=self._where, next_step="read the lines above")


def run_step(
    project: str, arguments: Sequence[str], directory: Path, env: Mapping[str, str], progress: Progress
) -> None:
    """Run one step to its end; see StepProcess for what it raises. An interrupt ends the step too."""
    step = StepProcess(project, arguments, directory, env)
    try:
        step.finish(progress)
    finally:
        step.stop()


def step_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the part of ``env`` that a step may see."""
    passed = {name: value for name, value in env.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)}
    return passed | SWITCHES | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def read_step_json(path: Path) -> dict[str, Any]:
    """Return a JSON object that a step wrote.

    Raises:
        DataError: the step did not write it, or it is no object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"the step did not write it ({error})", where=str(path), next_step="see docs/project-contract.md"
        ) from None
    if not isinstance(value, dict):
        raise DataError("is not a JSON object", where=str(path), next_step="see docs/project-contract.md")
    return value
