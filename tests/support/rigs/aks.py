"""The rig of the aks target."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_service.ports import Endpoint, Release, Target
from ml_service.targets.aks import credentials
from ml_service.targets.aks.target import AksTarget
from tests.support.images import STUB_IMAGE, push_image
from tests.support.rigs.base import TargetRig
from tests.support.services import cluster_or_skip, engine_or_skip, registry_or_skip
from tests.support.settings import settings_for


class AksRig(TargetRig):
    """The aks target under a name of its own, and pushed images of the stub server."""

    marks = (pytest.mark.kubernetes,)

    def __init__(self, directory: Path, **variables: str) -> None:
        cluster_or_skip()
        self.client = engine_or_skip()
        self._registry = registry_or_skip()
        self.namespace = variables.get("AKS_NAMESPACE", "default")
        self.home = directory / "home"
        self.name = f"test-{uuid.uuid4().hex[:10]}"
        defaults = {
            "AKS_DEPLOYMENT_NAME": self.name,
            "AKS_SERVICE_TYPE": "NodePort",
            "AKS_CPU": "0.15",
            "AKS_MEMORY_GB": "0.25",
            "AKS_DRAIN_SECONDS": "2",
            "AKS_STARTUP_TIMEOUT": "60",
        }
        self.variables = {**defaults, **variables}
        self.target = self.open()

    def open(self, **variables: str) -> AksTarget:
        """Return another object for the same deployment, with other settings if there are any."""
        return AksTarget(settings_for(self.home, **{**self.variables, **variables}))

    def prepare(self, release: Release) -> Release:
        """Push an image of the release to the registry."""
        return push_image(self.client, release, f"{self._registry}/{STUB_IMAGE}")

    def under_load(self) -> tuple[Target, Callable[[], Endpoint] | None]:
        # As deployed: kube-proxy needs seconds to notice that a pod ends, more where tests keep the machine busy.
        return self.open(AKS_DRAIN_SECONDS="15"), None

    @property
    def api(self) -> Any:
        """A client of the cluster with all rights."""
        from kubernetes import config

        return config.new_client_from_config(os.environ["KUBECONFIG"])

    def object(self, api_version: str, kind: str) -> Any:
        """Return the object of that kind with the deployment's name."""
        return credentials.connect(settings_for(self.home, **self.variables)).get(api_version, kind, self.name)

    def pods(self) -> list[Any]:
        """Return the deployment's pods, without those that are being deleted."""
        from kubernetes import client

        pods = client.CoreV1Api(self.api).list_namespaced_pod(
            self.namespace, label_selector=f"app.kubernetes.io/name={self.name}"
        )
        return [pod for pod in pods.items if pod.metadata.deletion_timestamp is None]

    def close(self) -> None:
        """Remove everything, without waiting for pods to end by themselves."""
        from kubernetes import client

        apps, core = client.AppsV1Api(self.api), client.CoreV1Api(self.api)
        selector = f"app.kubernetes.io/name={self.name}"
        apps.delete_collection_namespaced_deployment(self.namespace, label_selector=selector)
        core.delete_collection_namespaced_pod(self.namespace, label_selector=selector, grace_period_seconds=0)
        super().close()
        self.client.close()
