"""The objects around the Deployments, from the Service to the autoscaler, and the Secret with the two keys."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from contextlib import suppress

from ml_service.common import keys as key_file
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.errors import UnavailableError
from ml_service.ports import Keys
from ml_service.targets.aks.client import Cluster, Conflict, Object
from ml_service.targets.aks.deployment import STABLE, Version, supporting
from ml_service.targets.aks.ingress import Exposure

_AUTOSCALER = "HorizontalPodAutoscaler"


class SupportingObjects:
    """Everything but the Deployments and the keys, in the newest API versions that the cluster serves."""

    def __init__(self, cluster: Cluster, settings: Settings, exposure: Exposure) -> None:
        self._cluster = cluster
        self._settings = settings
        self._aks = settings.aks
        self._exposure = exposure

    def manifests(self) -> list[Object]:
        """Return what a deployment applies, in this order; the last is the route of a Gateway, if there is one.

        Raises:
            ConfigurationError: AKS_GATEWAY names a Gateway that the cluster does not have.
        """
        return [*self._own(self._aks.min_replicas, self._aks.max_replicas), *self._exposure.manifests()]

    def set_autoscaler(self, least: int, most: int) -> None:
        """Let the autoscaler keep the stable track between ``least`` and ``most`` pods."""
        for body in self._own(least, most):
            if body["kind"] == _AUTOSCALER:
                self._cluster.apply(body, force=True)

    def reset_autoscaler(self) -> None:
        """Give the autoscaler back the range of the settings."""
        self.set_autoscaler(self._aks.min_replicas, self._aks.max_replicas)

    def delete(self) -> None:
        """Delete them all; what is exposed to clients goes first."""
        self._exposure.delete()
        for body in self._own(self._aks.min_replicas, self._aks.max_replicas):
            self._cluster.delete(body["apiVersion"], body["kind"], body["metadata"]["name"])

    def _own(self, least: int, most: int) -> list[Object]:
        cluster = self._cluster
        names = ["serviceaccount", "networkpolicy", "service"]
        names.append("hpa-v2" if cluster.serves("autoscaling/v2") else "hpa-v1")
        budget = next((api for api in ("policy/v1", "policy/v1beta1") if cluster.serves(api)), "")
        names += ["pdb"] if budget else []
        names += ["ingress"] if self._aks.host and not self._aks.gateway else []
        folder = self._settings.root / "scoring" / "k8s"
        manifests = supporting(self._settings, folder, names, {"min_replicas": least, "max_replicas": most})
        for body in manifests:
            if body["kind"] == "PodDisruptionBudget":
                body["apiVersion"] = budget
            if body["kind"] == "Service" and self._aks.gateway:
                # A route shares the traffic between two Services, so this one must not select the canary's pods.
                body["spec"]["selector"]["mlops/track"] = STABLE
        return manifests


class KeySecret:
    """The Secret with the endpoint's two keys. It outlives deployments; pods mount it as a file."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._app = settings.aks.name
        self.name = f"{self._app}-keys"

    def exists(self) -> bool:
        """Return whether the keys have been generated."""
        return self._read() is not None

    def create(self) -> None:
        """Generate two keys, unless there are some."""
        labels = {"app.kubernetes.io/name": self._app, "app.kubernetes.io/managed-by": "mlops-tasks"}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self.name, "labels": labels},
            "stringData": {"keys.json": json.dumps(key_file.new_keys())},
        }
        with suppress(Conflict):
            self._cluster.create(body)

    def read(self) -> Keys:
        """Return both keys.

        Raises:
            UnavailableError: the Secret is missing, or does not hold two keys.
        """
        data: Mapping[str, str] = (self._read() or {}).get("data", {})
        try:
            return Keys(**json.loads(base64.b64decode(data["keys.json"])))
        except (KeyError, ValueError, TypeError):
            raise UnavailableError(
                "does not hold two keys", where=f"Secret {self.name}", next_step="run: inv undeploy --target aks"
            ) from None

    def key_for(self, version: Version) -> str:
        """Return a key that opens ``version``; empty where it answers without one."""
        return self.read().primary if requires_key(version.environment) else ""

    def mask(self) -> Callable[[str], str]:
        """Return a function that hides both keys in a line."""
        return key_file.masking(self.read)

    def delete(self) -> None:
        """Delete the keys."""
        self._cluster.delete("v1", "Secret", self.name)

    def _read(self) -> Object | None:
        return self._cluster.get("v1", "Secret", self.name)
