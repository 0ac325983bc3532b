"""The tasks with ``--platform azureml``, as a person runs them: emulator, real steps, a live endpoint."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port

if find_spec("azureml") is None:
    pytest.skip("azureml-sdk is not installed: see docs/azure-ml.md", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
OF_THE_RUN = {"run_id", "pipeline_id", "mlflow_run_id"}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def azure() -> Iterator[Mapping[str, str]]:
    """What the emulator told us to export."""
    emulator = subprocess.Popen(
        [sys.executable, "-m", "emulators"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert emulator.stdout is not None and emulator.stderr is not None
    exported: dict[str, str] = {}
    for line in emulator.stdout:
        name, _, value = line.removeprefix("export ").rstrip().partition("=")
        if value:
            exported[name] = shlex.split(value)[0]
        if name == "MLOPS_PLATFORM":
            break
    yield exported
    emulator.terminate()
    _, complaints = emulator.communicate(timeout=60)
    assert complaints == ""


def task(home: Path, env: Mapping[str, str], *arguments: str, code: int = 0) -> str:
    """``inv ARGUMENTS``; returns what it printed."""
    ours = ("MLOPS_", "BUILD_", "TF_", "SSL_CERT_DIR")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *arguments],
        cwd=ROOT,
        env={**inherited, "MLOPS_HOME": str(home), "MLFLOW_TRACKING_URI": "", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert code == done.returncode, done.stdout
    return done.stdout


def test_from_publication_to_a_live_endpoint_and_a_second_run_that_is_canceled(
    azure: Mapping[str, str], tmp_path: Path
) -> None:
    """publish → train → check-model → package-artifact → deploy → smoke.

    A second run of the same is canceled by the gate. The artifact says what the local platform's says, field by field.
    """
    home, artifact = tmp_path / "azure", tmp_path / "artifact"
    env = {**azure, "BUILD_BUILDID": "b1", "LOCAL_PORT": str(free_port())}
    task(home, env, "doctor", "--platform", "azureml")
    task(home, env, "publish")
    assert "registered diabetes_regression:1" in task(home, env, "train")
    assert "Model diabetes_regression:1 was registered for this run." in task(home, env, "check-model")
    task(home, env, "package-artifact", "--output", str(artifact))
    try:
        task(home, env, "deploy", "--target", "local", "--artifact", str(artifact))
        smoke = task(home, env, "smoke", "--target", "local", "--artifact", str(artifact))
        assert "diabetes_regression:1 answers" in smoke
    finally:
        task(home, env, "undeploy", "--target", "local")

    again = {**env, "BUILD_BUILDID": "b2"}
    task(home, again, "publish")
    task(home, again, "train", "--no-wait")
    assert "Model was not registered for this run." in task(home, again, "check-model")
    task(home, again, "check-model", "--fail-if-none", code=7)

    assert _comparable(_locally(tmp_path)) == _comparable(json.loads((artifact / "model.json").read_bytes()))


def _locally(directory: Path) -> dict[str, Any]:
    home, artifact = directory / "local", directory / "local-artifact"
    env = {"BUILD_BUILDID": "b1"}
    for arguments in (["publish"], ["train"], ["package-artifact", "--output", str(artifact)]):
        task(home, env, *arguments, "--platform", "local")
    described: dict[str, Any] = json.loads((artifact / "model.json").read_bytes())
    return described


def _comparable(described: dict[str, Any]) -> dict[str, Any]:
    """Without what belongs to one run."""
    tags = {name: value for name, value in described["tags"].items() if name not in OF_THE_RUN}
    return {name: value for name, value in described.items() if name != "createdTime"} | {"tags": tags}
