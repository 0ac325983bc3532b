"""The aks target against a Kubernetes API in memory: what its plans, its status and its rollouts say and do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_service.config import Settings
from ml_service.errors import UnhealthyError
from ml_service.ports import Endpoint, Release, Status
from ml_service.targets import aks, aks_canary, rollout
from ml_service.targets.aks import AksTarget
from tests.fake_kubernetes import FakeKubernetes
from tests.fakes import make_release

pytest.importorskip("kubernetes")

ROOT = Path(__file__).resolve().parents[2]
NAME = "toy"


class World:
    """A cluster in memory, releases for it, and the target under settings of the test's own."""

    def __init__(self, directory: Path, *served: str) -> None:
        self.api = FakeKubernetes(*served)
        self._directory = directory

    def target(self, **variables: str) -> AksTarget:
        """A new view of the same cluster, as another task has it."""
        defaults = {"AKS_DEPLOYMENT_NAME": NAME, "AKS_SERVICE_TYPE": "ClusterIP", "AKS_STARTUP_TIMEOUT": "1"}
        env = {"MLOPS_HOME": str(self._directory / "home"), **defaults, **variables}
        return AksTarget(Settings.from_env(env, ROOT), self.api.cluster())

    def release(self, version: str) -> Release:
        """A release with an image that was pushed."""
        directory = self._directory / f"release-{version}"
        made = make_release(directory, version)
        return replace(made, image="registry.example/toy", image_digest=f"sha256:{int(version):064d}")

    def deploy(self, release: Release, *, canary: int | None = None, **variables: str) -> Status:
        """Plan and apply."""
        target = self.target(**variables)
        return target.apply(target.plan(release, canary_percent=canary), no_question, print)

    def steps(self, release: Release, **variables: str) -> list[tuple[str, str]]:
        """What a plan would do."""
        return [(step.action, step.subject) for step in self.target(**variables).plan(release).steps]

    def object(self, plural: str, name: str = NAME) -> Any:
        """An object of the cluster, or None."""
        return self.api.objects.get((plural, name))

    def state(self) -> str:
        """What a status says."""
        status = self.target().status()
        assert status is not None
        return status.state


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Its pods have no network, so what they would answer under /metrics is a file of that name."""

    @contextmanager
    def forwarded(_cluster: Any, _pod: str, _port: int) -> Iterator[str]:
        yield tmp_path.as_uri()

    (tmp_path / "metrics").write_text("")
    monkeypatch.setattr(aks_canary, "forwarded", forwarded)
    monkeypatch.setattr(aks, "_ROUTERS_FOLLOW", 0.0)
    monkeypatch.setattr(rollout, "_POLL", 0.01)
    return World(tmp_path)


def no_question(endpoint: Endpoint, package: Path | None) -> None:
    """Verifies nothing."""


class TestPodsThatCount:
    """Only pods of the newest template decide a rollout, and one that is ready is never a reason to give it up."""

    def test_a_pod_that_once_restarted_blocks_no_canary(self, world: World) -> None:
        """A process that ended last week says nothing about the pod that is ready now."""
        world.deploy(world.release("1"))
        restarted(world.api.pods("stable")[0])
        status = world.deploy(world.release("2"), canary=25)
        assert "version 2 gets 25.0 %" in status.state

    def test_a_broken_pod_of_the_same_package_blocks_no_deployment(self, world: World) -> None:
        """It had too little memory: the same package with more of it comes up beside it."""
        release = world.release("1")
        world.deploy(release)
        old = world.api.pods("stable")[0]
        restarted(old)
        old["status"]["conditions"][0]["status"] = "Unknown"
        assert world.deploy(release, AKS_MEMORY_GB="1").state == "serving"
        assert old not in world.api.pods("stable")

    def test_a_new_pod_whose_process_ended_is_trouble(self, world: World) -> None:
        """The rollout is given up at once, not at the end of its time."""
        world.deploy(world.release("1"))
        world.api.broken.add("toy:2")
        world.api.restarts.add("toy:2")
        with pytest.raises(UnhealthyError, match="ended with code 137"):
            world.deploy(world.release("2"), AKS_STARTUP_TIMEOUT="60")


def restarted(pod: Any) -> None:
    """As a pod looks whose process was killed once and runs again."""
    pod["status"]["containerStatuses"][0].update(
        restartCount=1, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    )
