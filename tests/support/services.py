"""The services that some tests need: a container engine, an image registry, a Kubernetes cluster.

Without its service a test is skipped and says why. Where ``TESTS_NEED`` names the service (``docker``, ``kubernetes``),
CI has brought it up, so the test fails instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import requests

from ml_service.targets.aks.target import AksTarget
from tests.support.settings import settings_for

if TYPE_CHECKING:
    from docker import DockerClient

REGISTRY = "127.0.0.1:5000"


def is_required(service: str) -> bool:
    """Return whether ``TESTS_NEED`` names the service."""
    return service in os.environ.get("TESTS_NEED", "").split(",")


def engine_or_skip() -> DockerClient:
    """Return a client of the engine on its usual socket."""
    docker = pytest.importorskip("docker")
    try:
        client: DockerClient = docker.from_env(timeout=300)
        client.ping()
    except docker.errors.DockerException as error:
        _skip_or_fail("docker", f"no container engine answers: {error}")
    return client


def registry_or_skip() -> str:
    """Return the address of the registry next to the engine."""
    try:
        requests.get(f"http://{REGISTRY}/v2/", timeout=5).raise_for_status()
    except requests.RequestException as error:
        _skip_or_fail("docker", f"no image registry answers at {REGISTRY}: {error}")
    return REGISTRY


def cluster_or_skip() -> str:
    """Return the kubeconfig of the cluster that ``KUBECONFIG`` names."""
    pytest.importorskip("kubernetes")
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        _skip_or_fail("kubernetes", "KUBECONFIG names no cluster")
    finding = AksTarget(settings_for(Path("/nonexistent"))).diagnose()[0]
    if not finding.ok:
        _skip_or_fail("kubernetes", f"the cluster does not answer: {finding.detail}")
    return kubeconfig


def _skip_or_fail(service: str, reason: str) -> NoReturn:
    if is_required(service):
        pytest.fail(f"TESTS_NEED names {service}, but {reason}")
    pytest.skip(reason)
