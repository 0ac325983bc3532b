"""Under Azure Pipelines, setting up the environment also puts its commands on the PATH of the steps that follow."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def sync() -> ModuleType:
    """requirements/sync.py, which is a script beside the locks."""
    spec = importlib.util.spec_from_file_location("sync_under_test", ROOT / "requirements" / "sync.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def finished(sync: ModuleType, tmp_path: Path) -> list[str]:
    """The arguments for an environment that is finished already."""
    lock = tmp_path / "lock.txt"
    lock.write_text("")
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").touch()
    sync.write_stamp(environment, lock)
    return [str(environment), str(lock)]


def test_the_agent_is_told_where_the_commands_are(
    sync: ModuleType, finished: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps of the YAML say `inv …`, without a folder."""
    monkeypatch.setenv("TF_BUILD", "True")
    assert sync.main(finished) == 0
    assert capsys.readouterr().out == f"##vso[task.prependpath]{finished[0]}/bin\n"


def test_a_person_is_not(
    sync: ModuleType, finished: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed when there is nothing to do."""
    monkeypatch.delenv("TF_BUILD", raising=False)
    assert sync.main(finished) == 0
    assert capsys.readouterr().out == ""
