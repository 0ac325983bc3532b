"""What a version of before wrote is read, served and brought back: see tests/support/upgrade."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ml_service.common import keys as key_file
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.platforms import open_platform
from ml_service.ports import RunStatus
from ml_service.targets.local.state import Paths
from ml_service.targets.local.target import LocalTarget
from ml_service.workflows import deployment, training
from ml_service.workflows.artifact import package_artifact
from tests.support.ports import free_port
from tests.support.sources import ROOT

pytestmark = pytest.mark.slow

ARCHIVE = ROOT / "tests" / "support" / "upgrade" / "home-33c8506.tar.xz"
BUILD = "20261127.094926.bdaa"
PACKAGE = "bcba0b456dcecb9e982dcc22450791fb863df263705f3d0a70d719fee7c7f3f1"

OLD_SUPERVISOR = """
import os, sys
from ml_service.targets.local import supervisor

status = supervisor.Supervisor._status

async def status_of_before(self, command, progress):
    answer = await status(self, command, progress)
    return {name: answer[name] for name in ("state", "trouble", "pid")}

supervisor.Supervisor._status = status_of_before
sys.exit(supervisor.main(sys.argv[1:]))
"""
"""A supervisor that answers as those of before did, which did not say where their watchdog is."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of today's code on an MLOPS_HOME of before, as if make ci had run here then."""
    home = tmp_path / "home"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(home, filter="data")
    for path in (home / "store" / "mlflow.sql", *home.glob("store/runs/*/order.json")):
        path.write_text(path.read_text().replace("{HOME}", str(home)).replace("{ROOT}", str(ROOT)))
    database = sqlite3.connect(home / "store" / "mlflow.db")
    database.executescript((home / "store" / "mlflow.sql").read_text())
    database.close()
    paths = Paths(home)
    state = json.loads(paths.state.read_bytes())
    paths.state.write_text(json.dumps({**state, "port": free_port()}))
    key_file.make(paths.keys)
    return Settings.from_env({"PATH": os.environ["PATH"], "MLOPS_HOME": str(home), "CI": "true"}, ROOT)


@pytest.fixture
def target(settings: Settings) -> Iterator[LocalTarget]:
    """The target local, with what served before; removed at the end."""
    target = LocalTarget(settings)
    yield target
    target.undeploy(print)


@pytest.fixture
def console() -> Console:
    """Where the tasks print."""
    return Console(sys.stdout)


def test_the_store_is_read(settings: Settings, console: Console, tmp_path: Path) -> None:
    """The build's run and model, the champion and its files; the champion is packaged with today's scoring code."""
    platform = open_platform(settings)
    version = training.check_model(replace(settings, build_id=BUILD), platform, console)
    champion = platform.champion("diabetes_regression")
    assert version is not None and champion is not None
    assert (version.reference, champion.reference) == ("diabetes_regression:1", "diabetes_regression:1")
    assert platform.runs(settings.project, BUILD)[0].verdict["reason"] == "first of its name"
    artifact = package_artifact(settings, platform, console, output=tmp_path / "artifact", model="champion")
    assert artifact.package_sha256 != PACKAGE


def test_the_gate_compares_with_the_champion_of_before(settings: Settings, console: Console) -> None:
    """The same model is not better than the one that was registered then."""
    platform, today = open_platform(settings), replace(settings, build_id="today", build_id_source="--build-id")
    training.publish(today, platform, console)
    run = training.train(today, platform, console)
    assert (run.status, run.registered) == (RunStatus.CANCELED, "")
    assert run.verdict["champion"] == pytest.approx(run.verdict["candidate"], rel=1e-9)


def test_what_served_is_replaced_and_brought_back(
    settings: Settings, target: LocalTarget, console: Console, tmp_path: Path
) -> None:
    """While a supervisor of before runs, which is said; rollback serves the package with its own scoring code."""
    said: list[str] = []
    home = settings.home
    command = [sys.executable, "-c", OLD_SUPERVISOR, str(home)]
    old = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    assert old.stdout is not None
    assert json.loads(old.stdout.readline()) == {"pid": old.pid}
    before = target.status()
    assert before is not None and before.package_sha256 == PACKAGE
    platform = open_platform(settings)
    artifact = tmp_path / "artifact"
    package_artifact(settings, platform, console, output=artifact, model="champion")
    deployment.deploy(settings, platform, target, Recorder(said), artifact=artifact)
    assert (old.wait(60), "its supervisor was started before an update" in "".join(said)) == (0, True)
    after = target.status()
    assert after is not None
    assert (after.url, after.previous) == (before.url, {"name": "diabetes_regression", "version": "1"})
    assert after.package_sha256 != PACKAGE
    restored = deployment.rollback(settings, target, console)
    assert (restored.package_sha256, restored.url, restored.state) == (PACKAGE, before.url, "serving")
    assert (Path(restored.package) / "scoring" / "lane.py").is_file()


class Recorder(Console):
    """Keeps the lines of progress."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(sys.stdout)
        self._progress_lines = lines

    def progress(self, text: str) -> None:
        """Keep the line and print it."""
        self._progress_lines.append(text)
        super().progress(text)
