"""A project is read, frozen and run as a process; nothing of it is imported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ml_service.errors import (
    ConfigurationError,
    DataError,
    IntegrityError,
    MlopsError,
    UnavailableError,
    UsageError,
)
from ml_service.package import sha256_of
from ml_service.project import (
    StepProcess,
    define,
    read_project,
    read_step_json,
    run_step,
    step_environment,
)
from tests.support.repositories import PROJECT, make_repository

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_repository(tmp_path)


def describe(root: Path, **changed: Any) -> None:
    """Change the project's description; None removes a name."""
    path = root / PROJECT / "project.json"
    described = {**json.loads(path.read_bytes()), **changed}
    path.write_text(json.dumps({name: value for name, value in described.items() if value is not None}))


def test_a_description_is_read_and_nothing_executed(root: Path) -> None:
    """A project whose code is broken can still be listed."""
    (root / PROJECT / "__init__.py").write_text("syntax error")
    project = read_project(root, PROJECT)
    assert (project.model_name, project.data, project.reference) == ("mean_regression", "data/mean.csv", "")
    assert (project.metric, project.direction, project.runtime) == ("mse", "lower", "script")


@pytest.mark.parametrize(
    "changed",
    [
        {"model_name": None},
        {"model_name": "a/b"},
        {"model_name": "a'b"},
        {"data": None},
        {"metric": "mse"},
        {"metric": {"name": "mse"}},
        {"metric": {"name": "mse", "direction": "up"}},
        {"runtime": "pickle"},
    ],
)
def test_a_wrong_description_is_named(root: Path, changed: dict[str, Any]) -> None:
    """Exit code 4, with the file and where its contract stands."""
    describe(root, **changed)
    with pytest.raises(ConfigurationError) as caught:
        read_project(root, PROJECT)
    assert caught.value.where == str(root / PROJECT / "project.json")
    assert caught.value.next_step == "see docs/project-contract.md"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_description_that_is_no_json_object_is_named(root: Path, content: bytes) -> None:
    """Truncated, binary, or another type."""
    (root / PROJECT / "project.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"project\.json"):
        read_project(root, PROJECT)


def test_a_missing_project_is_an_error_of_usage(root: Path) -> None:
    """Exit code 2."""
    with pytest.raises(UsageError):
        read_project(root, "missing")


def test_a_pipeline_is_sources_parameters_and_the_lock(root: Path) -> None:
    """Neither byte code nor hidden files belong to it."""
    (root / PROJECT / "__pycache__").mkdir(exist_ok=True)
    (root / PROJECT / "__pycache__" / "x.pyc").write_bytes(b"0")
    (root / PROJECT / ".notes").write_text("mine")
    frozen = define(root, read_project(root, PROJECT), "", {"run_evaluation": True, "allow_run_cancel": True})
    sources = ["__init__.py", "__main__.py", "parameters.json", "project.json", "score.py"]
    assert sorted(frozen.files) == [*(f"{PROJECT}/{name}" for name in sources), "requirements/all.txt"]
    assert frozen.lock_sha256 == sha256_of(root / "requirements" / "all.txt")
    assert frozen.model_name == "mean_regression"


def test_without_a_lock_nothing_is_frozen(root: Path) -> None:
    """What a pipeline runs under must be known."""
    (root / "requirements" / "all.txt").unlink()
    with pytest.raises(ConfigurationError, match=r"requirements/all\.txt"):
        define(root, read_project(root, PROJECT), "", {})


def step(root: Path, code: str) -> list[str]:
    """Run a project that consists of ``code``; returns what it said."""
    (root / "scripted").mkdir()
    (root / "scripted" / "__main__.py").write_text(code)
    lines: list[str] = []
    run_step("scripted", ["train"], root, os.environ, lines.append)
    return lines


def test_what_a_step_says_is_progress_line_by_line(tmp_path: Path) -> None:
    """Also what cannot be decoded, and what goes to standard error."""
    code = "import sys\nprint('one', flush=True)\nsys.stdout.buffer.write(b'\\xff\\n')\nsys.stdout.flush()\n"
    assert step(tmp_path, code + "print('three', file=sys.stderr)") == ["one", "\ufffd", "three"]


@pytest.mark.parametrize(
    "code, kind", [(2, UsageError), (3, DataError), (4, ConfigurationError), (5, UnavailableError), (8, IntegrityError)]
)
def test_the_exit_code_of_a_step_is_the_kind_of_its_error(tmp_path: Path, code: int, kind: type[MlopsError]) -> None:
    """The last line says what went wrong, the step where."""
    with pytest.raises(kind) as caught:
        step(tmp_path, f"import sys\nprint('reading')\nprint('error: BMI is text', file=sys.stderr)\nsys.exit({code})")
    assert (caught.value.what, caught.value.where) == ("BMI is text", "python -m scripted train")


def test_a_step_that_crashes_is_told_with_its_last_words(tmp_path: Path) -> None:
    """An exit code that has no meaning, after a traceback."""
    with pytest.raises(MlopsError, match="ended with exit code 1: ZeroDivisionError"):
        step(tmp_path, "1 / 0")


def test_a_step_that_is_killed_is_told_with_the_signal(tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    with pytest.raises(MlopsError, match="was ended by SIGKILL"):
        step(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")


def test_a_step_can_be_stopped_at_any_time(root: Path) -> None:
    """Stopping twice, or after its end, is fine."""
    (root / PROJECT / "__main__.py").write_text("import time\ntime.sleep(600)")
    process = StepProcess(PROJECT, ["train"], root, os.environ)
    process.stop()
    process.stop()
    with pytest.raises(MlopsError, match="SIGKILL"):
        process.finish(lambda line: None)


def test_a_step_sees_no_secret_of_ours() -> None:
    """It gets an interpreter, a locale and its threads."""
    env = {"PATH": "/bin", "LC_ALL": "C", "OMP_NUM_THREADS": "2", "SP_APP_SECRET": "s", "MLFLOW_TRACKING_URI": "u"}
    passed = step_environment(env)
    assert {"PATH", "LC_ALL", "OMP_NUM_THREADS"} <= passed.keys()
    assert not {"SP_APP_SECRET", "MLFLOW_TRACKING_URI"} & passed.keys()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff"])
def test_what_a_step_did_not_write_is_named(tmp_path: Path, content: bytes | None) -> None:
    """Missing, truncated or no object: exit code 3, by its path."""
    path = tmp_path / "verdict.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"verdict\.json"):
        read_step_json(path)
