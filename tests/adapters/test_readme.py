"""The README's commands for containers and a cluster, taken from its text and run one after the other."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.containers import ROOT, cluster_or_skip, engine_or_skip, registry_or_skip, removing_images
from tests.ports import free_port

pytestmark = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.timeout(1200)]

NEEDED = ("ml_service", "diabetes_regression", "scoring", "data", "requirements", "tasks.py")


def commands(name: str) -> list[str]:
    """The lines of the README's block ``name``."""
    found = re.search(rf"<!-- commands {name} -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None, name
    return found.group(1).splitlines()


class Reader:
    """Somebody who follows the README in a copy of the repository, with settings as it says."""

    def __init__(self, root: Path, registry: str) -> None:
        self.root = root
        self.name = f"readme-{uuid.uuid4().hex[:8]}"
        ours = ("MLOPS_", "BUILD_", "MLFLOW_", "SCORING_", "AKS_", "DOCKER_NAME", "DOCKER_PORT", "IMAGE_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
            "IMAGE_REGISTRY": registry,
            "IMAGE_NAME": self.name,
            "IMAGE_BUILD_NETWORK": os.environ.get("IMAGE_BUILD_NETWORK", ""),
            "DOCKER_NAME": self.name,
            "DOCKER_PORT": str(free_port()),
            "AKS_DEPLOYMENT_NAME": self.name,
            "AKS_SERVICE_TYPE": "NodePort",
            "AKS_CPU": "0.1",
            "AKS_MEMORY_GB": "0.25",
            "CI": "",
            "TF_BUILD": "",
        }

    def run(self, command: str, **variables: str) -> str:
        """Run one line as it stands in the README; returns what it printed."""
        program, *arguments = shlex.split(command)
        assert program == "inv"
        done = subprocess.run(
            [sys.executable, "-m", "invoke", *arguments],
            cwd=self.root,
            env={**self.env, **variables},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def train(self, build: str, alpha: float) -> None:
        """Another version of the model."""
        (self.root / "diabetes_regression" / "parameters.json").write_text(json.dumps({"alpha": alpha}))
        self.run("inv publish", BUILD_BUILDID=build)
        self.run("inv train", BUILD_BUILDID=build)

    def ask(self, times: int) -> set[str]:
        """Put some traffic on the cluster's endpoint; the versions that answer there."""
        key = json.loads(self.run("inv keys --target aks --show --json"))["primary"]
        url = json.loads(self.run("inv status --target aks --json"))["url"]
        headers, body = {"Authorization": f"Bearer {key}"}, {"data": [[0.0] * 10]}
        versions = set()
        for _ in range(times):
            assert requests.post(f"{url}/score", json=body, headers=headers, timeout=60).status_code == 200
            versions.add(str(requests.get(f"{url}/model", headers=headers, timeout=60).json()["version"]))
        return versions


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Engine, registry and cluster are there; what was deployed is removed at the end."""
    cluster_or_skip()
    client, registry = engine_or_skip(), registry_or_skip()
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    made = Reader(tmp_path, registry)
    with removing_images(client, f"{registry}/{made.name}"):
        yield made
        made.run("inv undeploy --target aks")
        made.run("inv undeploy --target docker")
    client.close()


def test_the_commands_for_containers_and_a_cluster_work_as_they_stand(reader: Reader) -> None:
    """Package, image, push, docker, aks, a canary of 10 %, promote, rollback; each followed by smoke."""
    reader.train("first", 0.1)
    reader.train("second", 0.4)
    for line in commands("containers"):
        reader.run(line)
    assert reader.ask(600) == {"1", "2"}
    for line in commands("promote"):
        reader.run(line)
    status = json.loads(reader.run("inv status --target aks --json"))
    assert status["model"] == {"name": "diabetes_regression", "version": "1"}
