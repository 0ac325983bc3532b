"""The local target with the real scoring server and the real model: what the stand-in cannot show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from ml_service import package
from ml_service.config import LocalSettings, Settings
from ml_service.config.scoring import ScoringSettings
from ml_service.ports import ModelVersion, Release, Verify
from ml_service.smoke import smoke
from ml_service.targets.local.state import Paths
from ml_service.targets.local.supervisor_client import SupervisorClient
from ml_service.targets.local.target import LocalTarget
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "diabetes_regression"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """One trained model, packaged as two versions with today's scoring code."""
    directory = tmp_path_factory.mktemp("releases")
    command = [sys.executable, "-m", PROJECT.name, "train", "--data", str(ROOT / "data" / "diabetes.csv")]
    command += ["--parameters", str(PROJECT / "parameters.json"), "--output", str(directory / "candidate")]
    subprocess.run(command, cwd=ROOT, check=True)
    return [_release(directory, version) for version in ("1", "2")]


def _release(directory: Path, version: str) -> Release:
    name, lock = PROJECT.name, ROOT / "requirements" / "scoring.txt"
    registered = ModelVersion(f"{name}:{version}", name, version, "2026-01-01", {"runtime": "onnx"}, {}, {})
    target = directory / f"package-{version}"
    sha256 = package.build(registered, directory / "candidate", ROOT / "scoring", lock, target)
    return Release(target, sha256, name, version, f"build-{version}")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two workers: what the server starts must go with it."""
    return Settings(
        root=ROOT,
        home=tmp_path / "home",
        store=tmp_path / "store",
        scoring=ScoringSettings(workers=2),
        local=LocalSettings(port=0, startup_timeout=60, drain_timeout=30),
        env=dict(os.environ),
    )


@pytest.fixture
def target(settings: Settings) -> Iterator[LocalTarget]:
    made = LocalTarget(settings)
    yield made
    made.undeploy(print)
    wait_until(lambda: processes(settings) == [], "every process of the target has ended")


def deploy(target: LocalTarget, release: Release) -> None:
    target.apply(target.plan(release), question_of(release), print)


def question_of(release: Release) -> Verify:
    return lambda endpoint, package: smoke(endpoint, release.package, timeout=60, progress=print)


def first_request(release: Release) -> object:
    return json.loads((release.package / "model" / "examples.json").read_bytes())["examples"][0]["request"]


def processes(settings: Settings) -> list[int]:
    """Every process of the target's scoring servers, workers included."""
    packages = str(Paths(settings.home).packages)
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and packages in (entry / "environ").read_text(errors="replace"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_no_request_is_lost_of_the_real_model(target: LocalTarget, releases: list[Release]) -> None:
    """Two thousand requests while versions change, each answered; the service passes its smoke test afterwards."""
    swap_under_load(target, releases, requests_at_least=2_000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_request_is_lost_of_the_real_model_full_size(target: LocalTarget, releases: list[Release]) -> None:
    """Twenty thousand."""
    swap_under_load(target, releases, requests_at_least=20_000)


def swap_under_load(target: LocalTarget, releases: list[Release], *, requests_at_least: int) -> None:
    first, second = releases
    deploy(target, first)
    with Traffic(target.endpoint(), first_request(first)) as traffic:
        while traffic.answered + len(traffic.lost) < requests_at_least:
            deploy(target, second)
            traffic.wait_for(traffic.answered + 200)
            target.rollback(question_of(first), print)
            traffic.wait_for(traffic.answered + 200)
    assert traffic.lost == []
    assert traffic.answered >= requests_at_least
    question_of(first)(target.endpoint(), None)


def test_workers_go_with_the_supervisor(target: LocalTarget, settings: Settings, releases: list[Release]) -> None:
    """After ``kill -9`` of the supervisor no process of the server is left, and a deployment brings it back."""
    deploy(target, releases[0])
    assert len(processes(settings)) >= 3
    with SupervisorClient(Paths(settings.home).control) as control:
        supervisor = int(control.ask("status")["pid"])
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: processes(settings) == [], "every process of the target has ended")
    deploy(target, releases[0])
    question_of(releases[0])(target.endpoint(), None)


def test_a_killed_server_comes_back_whole(target: LocalTarget, settings: Settings, releases: list[Release]) -> None:
    """After ``kill -9`` of all its processes at once, requests wait for the next server and are answered."""
    deploy(target, releases[0])
    for process in processes(settings):
        os.kill(process, signal.SIGKILL)
    question_of(releases[0])(target.endpoint(), None)
    assert requests.get(f"{target.endpoint().url}/health/ready", timeout=60).status_code == 200
