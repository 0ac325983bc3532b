"""Which targets ``inv status`` shows when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_service.config import Settings
from ml_service.targets import TARGETS, open_target
from tests.support.repositories import PROJECT, make_repository


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_repository(tmp_path)


def configured(root: Path, **env: str) -> list[str]:
    """Return the names of the targets that are configured."""
    settings = Settings.from_env(env, root, project=PROJECT)
    return [name for name in TARGETS if open_target(name, settings).is_configured()]


def test_without_any_setting_only_this_machine_is_configured(root: Path) -> None:
    """It needs none."""
    assert configured(root) == ["local"]


@pytest.mark.parametrize(
    ("variable", "value", "target"),
    [
        ("DOCKER_PORT", "9000", "docker"),
        ("AKS_NAMESPACE", "models", "aks"),
        ("KUBECONFIG", "config", "aks"),
        ("ACI_DNS_LABEL", "models", "aci"),
        ("WEBAPP_PLAN", "plan", "webapp"),
    ],
)
def test_a_setting_of_a_target_configures_it(root: Path, variable: str, value: str, target: str) -> None:
    """And no other."""
    assert configured(root, **{variable: value}) == ["local", target]


def test_a_setting_at_its_default_configures_nothing(root: Path) -> None:
    """A copy of .env.example that nobody has changed is full of them."""
    assert configured(root, AKS_NAMESPACE="default", DOCKER_PORT="8090", ACI_PORT="8080") == ["local"]


@pytest.mark.parametrize("target", ["docker", "aks", "aci", "webapp"])
def test_a_deployment_from_this_machine_configures_its_target(root: Path, target: str) -> None:
    """Its packages, keys or logs are below MLOPS_HOME."""
    (root / ".mlops" / "targets" / target / "toy").mkdir(parents=True)
    assert configured(root) == ["local", target]
