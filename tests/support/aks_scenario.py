"""The aks target against a Kubernetes API in memory, with releases for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_service.config import Settings
from ml_service.ports import Release, Status
from ml_service.targets.aks import canary_metrics, ingress, rollout
from ml_service.targets.aks.deployment import STABLE, Version, deployment, read_version
from ml_service.targets.aks.target import AksTarget
from tests.support.fake_kubernetes import FakeKubernetes
from tests.support.releases import make_release, no_verification

ROOT = Path(__file__).resolve().parents[2]
NAME = "toy"


class AksScenario:
    """A cluster in memory, releases for it, and the target under settings of the test's own."""

    def __init__(self, directory: Path, *served: str) -> None:
        self.api = FakeKubernetes(*served)
        self._directory = directory

    def target(self, **variables: str) -> AksTarget:
        """A new view of the same cluster, as another task has it."""
        return AksTarget(self.settings(**variables), self.api.cluster())

    def settings(self, **variables: str) -> Settings:
        """Settings that name a deployment of the cluster."""
        defaults = {"AKS_DEPLOYMENT_NAME": NAME, "AKS_SERVICE_TYPE": "ClusterIP", "AKS_STARTUP_TIMEOUT": "5"}
        env = {"MLOPS_HOME": str(self._directory / "home"), "AKS_DRAIN_SECONDS": "1", **defaults, **variables}
        return Settings.from_env(env, ROOT)

    def gateway(self, api: str, name: str) -> None:
        """The cluster serves that version of a group, and has that Gateway of it."""
        self.api.served.add(api)
        metadata = {"name": name.partition("/")[2], "namespace": name.partition("/")[0]}
        body = {"apiVersion": api, "kind": "Gateway", "metadata": metadata}
        self.api.objects[(f"gateways.{api.partition('/')[0]}", name)] = body

    def release(self, version: str) -> Release:
        """A release with an image that was pushed."""
        directory = self._directory / f"release-{version}"
        made = make_release(directory, version)
        return replace(made, image="registry.example/toy", image_digest=f"sha256:{int(version):064d}")

    def deploy(self, release: Release, *, canary: int | None = None, **variables: str) -> Status:
        """Plan and apply."""
        target = self.target(**variables)
        return target.apply(target.plan(release, canary_percent=canary), no_verification, print)

    def steps(self, release: Release, **variables: str) -> list[tuple[str, str]]:
        """What a plan would do."""
        return [(step.action, step.subject) for step in self.target(**variables).plan(release).steps]

    def object(self, plural: str, name: str = NAME) -> Any:
        """An object of the cluster, or None."""
        return self.api.objects.get((plural, name))

    def serving(self) -> tuple[str, str | None]:
        """The versions that a status names: what serves, and what served before."""
        status = self.target().status()
        assert status is not None
        return status.model["version"], status.previous["version"] if status.previous else None

    def state(self) -> str:
        """What a status says."""
        status = self.target().status()
        assert status is not None
        return status.state


def at_gateway(gateway: str) -> dict[str, Any]:
    """Settings by which clients come through that Gateway."""
    return {"AKS_HOST": "model.example.com", "AKS_GATEWAY": gateway}


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers and controllers follow at once. Pods have no network, so each would answer /metrics with nothing."""
    monkeypatch.setattr(canary_metrics, "_read_counters", lambda *_: canary_metrics.Traffic())
    monkeypatch.setattr(ingress, "_PROXY_DELAY", 0.0)
    monkeypatch.setattr(ingress, "_ACCEPTANCE_POLL", 0.01)
    monkeypatch.setattr(rollout, "_POLL", 0.01)


def killed_in_its_rollout(scenario: AksScenario, version: str, **variables: str) -> Release:
    """Deploy a version whose pods do not get ready, and be killed meanwhile: nobody goes back."""
    release = scenario.release(version)
    scenario.api.broken.add(f"toy:{version}")
    settings, before = scenario.settings(**variables), read_version(scenario.object("deployments"))
    body = deployment(settings, Version.of(release, settings), STABLE, before)
    scenario.api.cluster().apply(body)
    return release
