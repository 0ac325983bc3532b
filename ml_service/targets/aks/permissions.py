"""Check the rights that the target aks needs in its namespace: those in the table of docs/aks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_service.targets.aks.client import Cluster

_OWNED = ("get", "create", "patch", "delete")

RIGHTS: Sequence[tuple[str, str, Sequence[str]]] = (
    ("apps", "deployments", _OWNED),
    ("apps", "deployments/scale", ("patch",)),
    ("apps", "replicasets", ("list",)),
    ("", "services", _OWNED),
    ("", "serviceaccounts", _OWNED),
    ("autoscaling", "horizontalpodautoscalers", _OWNED),
    ("policy", "poddisruptionbudgets", _OWNED),
    ("networking.k8s.io", "ingresses", _OWNED),
    ("networking.k8s.io", "networkpolicies", _OWNED),
    ("", "secrets", ("get", "create", "delete")),
    ("coordination.k8s.io", "leases", ("get", "create", "update", "delete")),
    ("", "pods", ("list",)),
    ("", "pods/log", ("get",)),
    ("", "pods/portforward", ("get", "create")),
    ("", "endpoints", ("get",)),
    ("", "events", ("list",)),
)
"""Group, resource, verbs: exactly those that are called. A port-forward is a get on some clusters, else a create."""

ROUTE_RIGHTS: Mapping[str, Sequence[tuple[str, str, Sequence[str]]]] = {
    "HTTPRoute": (
        ("gateway.networking.k8s.io", "httproutes", _OWNED),
        ("gateway.networking.k8s.io", "gateways", ("get",)),
    ),
    "VirtualService": (
        ("networking.istio.io", "virtualservices", _OWNED),
        ("networking.istio.io", "gateways", ("get",)),
    ),
}
"""The same for the routes of each kind, when AKS_GATEWAY is set; ``gateways`` in the Gateway's own namespace."""


def missing(cluster: Cluster, route: str = "", gateway: str = "") -> list[str]:
    """Return the rights that the cluster denies, such as ``patch deployments``.

    Args:
        route: the kind of route that is used, or nothing.
        gateway: the namespace of its Gateway, or nothing where routes belong to no Gateway.
    """
    return [
        f"{verb} {resource}"
        for group, resource, verbs in (*RIGHTS, *ROUTE_RIGHTS.get(route, ()))
        for verb in verbs
        if not _may(cluster, verb, group, resource, gateway if resource == "gateways" else cluster.namespace)
    ]


def _may(cluster: Cluster, verb: str, group: str, resource: str, namespace: str) -> bool:
    name, _, part = resource.partition("/")
    return cluster.may(verb, group, name, part, namespace=namespace)
