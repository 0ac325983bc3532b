"""Microsoft's own inference server runs score.py unchanged, and answers what ours answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.scoring.conftest import Serve
from tests.scoring.test_script_project import EXPECTED, project
from tests.support.ports import free_port
from tests.support.scoring_server import SCORE, TIMEOUT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def azmlinfsrv() -> Path:
    """The server's command, in an environment of its own: its dependencies do not fit beside ours."""
    from benchmarks.environments import peer_python

    try:
        return peer_python("serving").parent / "azmlinfsrv"
    except (subprocess.CalledProcessError, OSError) as error:
        why = f"its environment cannot be made here: {error}"
        if os.environ.get("TESTS_NEED"):
            pytest.fail(why)
        pytest.skip(why)


@contextlib.contextmanager
def azureml_server(command: Path, package: Path, log: Path) -> Iterator[str]:
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [command, "--entry_script", SCORE, "--port", str(port), "--worker_count", "1"],
            env={**os.environ, "AZUREML_MODEL_DIR": str(package)},
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def score(url: str, body: bytes) -> tuple[int, object]:
    """Status and answer, once the server answers at all."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            answer = requests.post(f"{url}/score", body, headers={"Content-Type": "application/json"}, timeout=TIMEOUT)
            return answer.status_code, answer.json() if answer.ok else None
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_good_requests_get_the_same_answers(azmlinfsrv: Path, mixed: Path, serve: Serve, tmp_path: Path) -> None:
    """Arrays, objects, defaults, text: equal to the last digit. A bad request is an error there too."""
    ours = serve(mixed)
    rows = [
        [[1.5, None, 2, None, True, None]],
        [{"number": 0.1, "count": 2**53, "flag": False, "word": "é"}],
        [[i / 7, i / 3, i, -i, i % 2 == 0, "" if i % 3 else "x"] for i in range(100)],
    ]
    with azureml_server(azmlinfsrv, mixed, tmp_path / "azureml.log") as url:
        for data in rows:
            answer = ours.score(data)
            assert (answer.status, answer.json) == score(url, json.dumps({"data": data}).encode())
        assert score(url, b'{"data": [["x"]]}')[0] >= 400


def test_a_project_with_modules_of_our_names_and_of_the_servers(azmlinfsrv: Path, tmp_path: Path) -> None:
    """That server puts a folder of its own on the path, with a config.py and others. The project's come first."""
    with azureml_server(azmlinfsrv, project(tmp_path / "p"), tmp_path / "azureml.log") as url:
        assert (200, {"result": [EXPECTED]}) == score(url, b'{"data": [[1, 2, 3]]}')
