"""The commands of docs/cluster.md, taken from its text and run one after the other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.images import removing_images
from tests.support.ports import free_port
from tests.support.services import cluster_or_skip, engine_or_skip, registry_or_skip
from tests.support.sources import ROOT

pytestmark = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.timeout(1200)]

NEEDED = ("ml_service", "diabetes_regression", "scoring", "data", "requirements", "tasks.py")


def commands(name: str) -> str:
    """Return the page's block ``name``."""
    block = re.search(
        rf"<!-- commands {name} -->\n```\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL
    )
    assert block is not None, name
    return block.group(1)


class Reader:
    """Somebody who follows the page in a copy of the repository, with settings as it says."""

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

    def run(self, commands: str, **variables: str) -> str:
        """Run lines as they stand in the page and return what they print. The first that fails is the last."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-exuo", "pipefail", "-c", commands],
            cwd=self.root,
            env={**self.env, "PATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def status(self) -> Any:
        """What serves on the cluster."""
        return json.loads(self.run("inv status --target aks --json"))


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
    reader.run("inv publish\ninv train", BUILD_BUILDID="first")  # as make ci has done
    reader.run(commands("second"), BUILD_BUILDID="second")
    for name in ("containers", "traffic"):
        reader.run(commands(name))
    assert reader.status()["model"] == {"name": "diabetes_regression", "version": "1"}
    assert "canary: diabetes_regression version 2" in reader.run("inv status --target aks")
    reader.run(commands("promote"))
    assert reader.status()["model"] == {"name": "diabetes_regression", "version": "1"}
