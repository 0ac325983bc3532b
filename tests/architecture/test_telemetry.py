"""Nobody is called: every library that would report its use is told not to, everywhere the same."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ml_service.telemetry import SWITCHES
from tests.support.packages import linear_graph, make_package
from tests.support.sources import ROOT

REPORTS = {
    **{name: "MLFLOW_DISABLE_TELEMETRY" for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")},
    "onnxruntime": "ORT_DISABLE_TELEMETRY",
    "onnxruntime-gpu": "ORT_DISABLE_TELEMETRY",
    "huggingface-hub": "HF_HUB_DISABLE_TELEMETRY",
    "gradio": "GRADIO_ANALYTICS_ENABLED",
    "streamlit": "STREAMLIT_BROWSER_GATHER_USAGE_STATS",
    "dvc": "DVC_NO_ANALYTICS",
    "zenml": "ZENML_ANALYTICS_OPT_IN",
    "great-expectations": "GX_ANALYTICS_ENABLED",
    "ray": "RAY_USAGE_STATS_ENABLED",
    "prefect": "DO_NOT_TRACK",
    "bentoml": "BENTOML_DO_NOT_TRACK",
    "evidently": "DO_NOT_TRACK",
    "deepchecks": "DEEPCHECKS_DISABLE_TELEMETRY",
    "posthog": "POSTHOG_DISABLED",
    "wandb": "WANDB_MODE",
    "sentry-sdk": "SENTRY_DSN",
}
"""Libraries that are known to report, and the variable that stops each."""


@pytest.mark.parametrize("lock", sorted(path.name for path in (ROOT / "requirements").glob("*.txt")))
def test_what_a_lock_brings_has_a_switch(lock: str) -> None:
    """A library that reports comes with its switch, or not at all."""
    names = re.findall(r"^([a-z0-9][a-z0-9.-]*)==", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    assert {REPORTS[name] for name in names if name in REPORTS} <= SWITCHES.keys()


def test_the_scoring_service_has_the_same_switches() -> None:
    """It ships alone, so it has a copy, in code and in its image."""
    tree = ast.parse((ROOT / "scoring" / "scoring_service" / "__init__.py").read_text())
    (copy,) = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert copy == SWITCHES
    dockerfile = (ROOT / "scoring" / "Dockerfile").read_text()
    assert {name: value for name, value in re.findall(r"(\w+)=(\S+)", dockerfile) if name in SWITCHES} == SWITCHES


@pytest.mark.slow
def test_a_home_stays_empty_while_a_model_is_served(tmp_path: Path) -> None:
    """ONNX Runtime would leave a device id and a queue there within seconds of the first session."""
    home, package = tmp_path / "home", make_package(tmp_path / "package", linear_graph())
    home.mkdir()
    env = {
        # On a build agent ONNX Runtime is quiet by itself.
        **{n: v for n, v in os.environ.items() if n not in (*SWITCHES, "CI", "TF_BUILD") and not n.startswith("XDG_")},
        **{"HOME": str(home), "AZUREML_MODEL_DIR": str(package), "SCORING_PORT": "0", "SCORING_AUTH": "off"},
    }
    server = subprocess.Popen([sys.executable, ROOT / "scoring" / "server.py"], env=env, stdout=subprocess.DEVNULL)
    try:
        time.sleep(8)  # nothing tells that something will never come
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait()
    assert list(home.rglob("*")) == []
