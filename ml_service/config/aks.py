"""Settings of the target aks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ml_service.config.fields import choice, flag, number, text, whole
from ml_service.errors import ConfigurationError

_CLUSTER_NAME = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
"""How objects and namespaces of a cluster are named."""


@dataclass(frozen=True)
class AksSettings:
    """Target aks: an endpoint on a Kubernetes cluster."""

    compute_name: str = text(
        "AKS_COMPUTE_NAME",
        help="The name under which the cluster is attached to the Azure ML workspace. KUBECONFIG takes precedence.",
    )
    context: str = text("AKS_CONTEXT", help="The context in KUBECONFIG. Empty: its current one.")
    namespace: str = text("AKS_NAMESPACE", "default", help="The namespace, which must exist.")
    name: str = text(
        "AKS_DEPLOYMENT_NAME", from_project=True, lower=True, help="The name of what is created in the namespace."
    )
    min_replicas: int = whole(
        "AKS_MIN_REPLICAS", 1, least=1, most=1000, unit="pods", help="How many pods there are at least."
    )
    max_replicas: int = whole(
        "AKS_MAX_REPLICAS", 10, least=1, most=1000, unit="pods", help="How many pods the autoscaler may start."
    )
    target_utilization: int = whole(
        "AKS_TARGET_UTILIZATION", 70, least=1, most=100, unit="percent", help="The CPU use that the autoscaler aims at."
    )
    cpu: float = number("AKS_CPU", 0.5, least=0.01, unit="cores", help="Cores of a pod, as request and as limit.")
    memory_gb: float = number(
        "AKS_MEMORY_GB", 0.5, least=0.0625, unit="GB", help="Memory of a pod, as request and as limit."
    )
    scoring_timeout_ms: int = whole(
        "AKS_SCORING_TIMEOUT_MS",
        0,
        least=0,
        most=3_600_000,
        unit="milliseconds",
        help="How long the model may take for a request. 0: what SCORING_TIMEOUT says.",
    )
    max_concurrent: int = whole(
        "AKS_MAX_CONCURRENT_REQUESTS",
        0,
        least=0,
        most=1 << 20,
        unit="requests",
        help="How many requests of a worker may wait for its model. Requests beyond it get 503. "
        "0: what SCORING_MAX_QUEUE says.",
    )
    host: str = text(
        "AKS_HOST", help="The name that clients use. With it they come in by an Ingress with TLS, or by AKS_GATEWAY."
    )
    ingress_class: str = text(
        "AKS_INGRESS_CLASS", "webapprouting.kubernetes.azure.com", help="The class of the Ingress."
    )
    tls_secret: str = text(
        "AKS_TLS_SECRET",
        fallback="the deployment's name with -tls",
        help="The secret that holds the certificate of the Ingress.",
    )
    service_type: str = choice(
        "AKS_SERVICE_TYPE",
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        default="",
        fallback="LoadBalancer; with AKS_HOST ClusterIP",
        help="The type of the Service.",
    )
    gateway: str = text(
        "AKS_GATEWAY",
        help="The Gateway (Gateway API or Istio) through which clients come instead of an Ingress: NAMESPACE/NAME, or "
        "NAME in AKS_NAMESPACE. mesh: Istio's sidecars. It needs AKS_HOST. A canary then gets its share by weights, "
        "not by pods.",
    )
    startup_timeout: float = number(
        "AKS_STARTUP_TIMEOUT", 120, least=1, unit="seconds", help="How long a pod may take to become ready."
    )
    drain_seconds: int = whole(
        "AKS_DRAIN_SECONDS",
        5,
        least=1,
        most=600,
        unit="seconds",
        help="How long routers take to notice that a pod ends.",
    )
    take_over: bool = flag(
        "AKS_TAKE_OVER",
        False,
        help="true takes over fields that somebody changed by hand. Otherwise such a deployment is refused.",
    )
    canary_min_requests: int = whole(
        "CANARY_MIN_REQUESTS",
        500,
        least=1,
        most=1 << 30,
        unit="requests",
        help="How many requests a canary must have answered before inv promote decides.",
    )

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ConfigurationError(
                f"invalid value: expected at most AKS_MAX_REPLICAS={self.max_replicas}",
                where=f"AKS_MIN_REPLICAS={self.min_replicas}",
                next_step="set both so that the first is at most the second",
            )
        if self.gateway and not re.fullmatch(rf"(?:{_CLUSTER_NAME}/)?{_CLUSTER_NAME}", self.gateway):
            raise ConfigurationError(
                f"invalid value {self.gateway!r}: expected NAMESPACE/NAME, NAME or mesh",
                where="AKS_GATEWAY",
                next_step="use NAMESPACE/NAME, NAME (in AKS_NAMESPACE) or mesh, or unset it",
            )
        if self.gateway and not self.host:
            raise ConfigurationError(
                "needs a host, for which the Gateway sends requests here",
                where="AKS_GATEWAY",
                next_step="set AKS_HOST to the name that clients use, or unset AKS_GATEWAY",
            )
        if self.gateway not in ("", "mesh") and "/" not in self.gateway:
            object.__setattr__(self, "gateway", f"{self.namespace}/{self.gateway}")
