"""The local platform among processes: two trainings at once, a tracking server on PostgreSQL, and MLflow's pages."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import requests

from ml_service.ports import RunStatus
from tests.support.local_platform import LocalPlatformEnv, ended
from tests.support.ports import free_port
from tests.support.repositories import definition
from tests.support.waiting import wait_until

# A run takes seconds by itself, and many times that where other things run.
pytestmark = pytest.mark.timeout(900)


def _lines_until(stream: Iterable[str], last: str) -> list[str]:
    """The lines up to and with ``last``, or all of them when the stream ends before."""
    lines = []
    for line in stream:
        lines.append(line)
        if line.startswith(last):
            break
    return lines


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_two_trainings_at_once_both_finish(tmp_path: Path) -> None:
    """``inv train`` twice, on an empty store and then on a filled one: whole versions only, the best is champion."""
    env = LocalPlatformEnv(tmp_path, create=False)
    for attempt, shifts in (("empty", (2.0, 1.0)), ("filled", (0.5, 0.25))):
        builds = [f"{attempt}-{number}" for number in (1, 2)]
        for build, shift in zip(builds, shifts, strict=True):
            definition(env.root, shift=shift)
            assert ended(env.inv("publish", "--build-id", build))[0] == 0
        racing = [env.inv("train", "--build-id", build) for build in builds]
        for process in racing:
            code, out, err = ended(process)
            assert code == 0, out + err
        versions = env.whole_versions()
        assert env.platform.champion("mean_regression") == versions[-1]
        assert versions[-1].tags["build_id"] == builds[1]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL of our own, run by a user without rights."""
    found = [shutil.which(name) for name in ("initdb", "postgres")]
    found = [
        name or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{tool}")), None)
        for name, tool in zip(found, ("initdb", "postgres"), strict=True)
    ]
    initdb, server = found
    if not initdb or not server:
        pytest.skip("PostgreSQL is not installed on this machine")
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    # Not below pytest's own directory, which other users may not enter.
    place = Path(tempfile.mkdtemp(prefix="mlops-postgres-"))
    os.chown(place, user, -1)
    made = subprocess.run(
        [initdb, "-D", str(place / "data"), "-U", "mlflow", "-A", "trust"],
        user=user,
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(place)},
    )
    if made.returncode:
        shutil.rmtree(place, ignore_errors=True)
        pytest.skip(f"initdb does not work here: {made.stderr.strip().splitlines()[-1]}")
    port = free_port()
    options = ["-p", str(port), "-k", str(place), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    process = subprocess.Popen(
        [server, "-D", str(place / "data"), *options],
        user=user,
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, "it answers", 120)
        assert process.poll() is None
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        end_group(process)
        shutil.rmtree(place, ignore_errors=True)


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def tracking_server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow tracking server on that database."""
    place, port = tmp_path_factory.mktemp("tracking-server"), free_port()
    url = f"http://127.0.0.1:{port}"
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--workers", "1", "--artifacts-destination", (place / "artifacts").as_uri()),
            ],
            # Its job runners would start seven more processes, and nothing here submits a job.
            env={
                **os.environ,
                "MLFLOW_BACKEND_STORE_URI": postgres,
                "MLFLOW_TRACKING_URI": "",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            cwd=place,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or is_well(f"{url}/health"), "it is healthy", 240)
        assert process.poll() is None, (place / "log").read_text()[-2000:]
        yield url
    finally:
        end_group(process)


def is_well(url: str) -> bool:
    """Whether it answers 200."""
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def test_a_tracking_server_on_postgresql_takes_the_place_of_sqlite(tracking_server: str, tmp_path: Path) -> None:
    """MLFLOW_TRACKING_URI alone moves runs, versions, files and the alias there."""
    env = LocalPlatformEnv(tmp_path, create=False, MLFLOW_TRACKING_URI=tracking_server)
    runs = [env.train(f"b{number}", shift=shift) for number, shift in enumerate((2.0, 1.0, 3.0), 1)]
    assert [(run.status, run.registered, run.error) for run in runs] == [
        (RunStatus.COMPLETED, "mean_regression:1", ""),
        (RunStatus.COMPLETED, "mean_regression:2", ""),
        (RunStatus.CANCELED, "", ""),
    ]
    first, second = env.whole_versions()
    platform = env.platform
    assert platform.champion("mean_regression") == second
    assert platform.model_of_build("mean_regression", "b1") == first
    assert platform.withdraw(second, "bad data") == first
    assert platform.champion("mean_regression") == first
    assert [finding for finding in platform.diagnose() if not finding.ok] == []
    assert not (env.settings.store / "mlflow.db").exists()


def test_the_pages_show_until_interrupted(tmp_path: Path) -> None:
    """``inv ui`` serves on the port it names; Ctrl-C ends it and what it started."""
    env, port = LocalPlatformEnv(tmp_path), free_port()
    process = env.inv("ui", "--port", str(port))
    assert process.stdout is not None
    said = _lines_until(process.stdout, "Ctrl-C ends it")
    assert is_well(f"http://127.0.0.1:{port}/")
    assert f"models: http://127.0.0.1:{port}/#/models/mean_regression\n" in said
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 130, out + err
    wait_until(lambda: not answers(port), "it has stopped", 120)
