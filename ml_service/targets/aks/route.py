"""Routes with weights: which kind a cluster has for a Gateway, their weights, and whether a controller accepts them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ml_service.errors import ConfigurationError
from ml_service.targets.aks.client import Cluster, Forbidden, Object
from ml_service.targets.aks.deployment import CANARY

MESH = "mesh"
HTTP_ROUTE, VIRTUAL_SERVICE = "HTTPRoute", "VirtualService"

_GATEWAY_API = "gateway.networking.k8s.io/v1"
_ISTIO = ("networking.istio.io/v1", "networking.istio.io/v1beta1")


@dataclass(frozen=True)
class Route:
    """A kind of route: the version of its group, and the Gateway (``NAMESPACE/NAME`` or ``mesh``) it belongs to."""

    api: str
    kind: str
    gateway: str

    @property
    def namespace(self) -> str:
        """The Gateway's namespace; empty for a mesh."""
        return self.gateway.rpartition("/")[0]

    def __str__(self) -> str:
        at = "the mesh" if self.gateway == MESH else f"Gateway {self.gateway}"
        return f"{self.kind} ({self.api}) at {at}"


def find_route(cluster: Cluster, gateway: str) -> Route:
    """Return the kind of route for the Gateway of that name: Gateway API's if it knows the name, else Istio's.

    Raises:
        ConfigurationError: neither knows it.
        UnavailableError: the cluster refuses one of the lookups, and the other does not find it.
    """
    refused: Forbidden | None = None
    searched: list[str] = []
    for api, kind in served_kinds(cluster):
        if gateway == MESH and kind == VIRTUAL_SERVICE:
            return Route(api, kind, gateway)
        searched.append(api)
        try:
            if gateway != MESH and _has_gateway(cluster, api, gateway):
                return Route(api, kind, gateway)
        except Forbidden as error:
            refused = error
    if refused:
        raise refused
    raise _not_found(cluster, gateway, searched)


def served_kinds(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield the API version and kind of each sort of route that the cluster serves."""
    if cluster.serves(_GATEWAY_API):
        yield _GATEWAY_API, HTTP_ROUTE
    istio = next((api for api in _ISTIO if cluster.serves(api)), "")
    if istio:
        yield istio, VIRTUAL_SERVICE


def _has_gateway(cluster: Cluster, api: str, gateway: str) -> bool:
    namespace, _, name = gateway.partition("/")
    return cluster.get(api, "Gateway", name, namespace=namespace) is not None


def _not_found(cluster: Cluster, gateway: str, searched: Sequence[str]) -> ConfigurationError:
    where = f"AKS_GATEWAY={gateway}"
    if gateway == MESH or not searched:
        expected = _ISTIO if gateway == MESH else (_GATEWAY_API, *_ISTIO)
        return ConfigurationError(
            f"the cluster at {cluster.address} serves none of {', '.join(expected)}",
            where=where,
            next_step="install what it names on the cluster, or unset AKS_GATEWAY to use an Ingress and pods",
        )
    return ConfigurationError(
        f"there is no Gateway of that name; looked for in {' and '.join(searched)}",
        where=where,
        next_step="see: kubectl get gateways --all-namespaces, and set AKS_GATEWAY to NAMESPACE/NAME of one",
    )


def with_weights(route: Object, name: str, percent: int) -> Object:
    """Return the same route with ``percent`` for the canary of the deployment ``name`` and the rest for its Service."""
    weights = {name: 100 - percent, f"{name}-{CANARY}": percent}
    changed = copy.deepcopy(route)
    for service, entry in _backends(changed):
        if service in weights:
            entry["weight"] = weights[service]
    return changed


def _backends(route: Object) -> Iterator[tuple[str, Object]]:
    """Yield the name of each Service that the route leads to, with the entry that holds its weight."""
    for rule in route["spec"].get("rules", []):
        yield from ((entry["name"], entry) for entry in rule.get("backendRefs", []))
    for rule in route["spec"].get("http", []):
        yield from ((entry["destination"]["host"], entry) for entry in rule.get("route", []))


_OWN_FIELDS = ("parentRefs", "hostnames", "rules", "hosts", "gateways", "http")


def own_part(route: Object) -> Object:
    """Return a route that was read, reduced to the fields that we own, so that it can be applied again."""
    metadata = {"name": route["metadata"]["name"], "labels": route["metadata"]["labels"]}
    spec = {name: value for name, value in route["spec"].items() if name in _OWN_FIELDS}
    return {"apiVersion": route["apiVersion"], "kind": route["kind"], "metadata": metadata, "spec": spec}


def acceptance(route: Object, generation: int, gateway: str) -> tuple[bool | None, str]:
    """Return whether a controller accepts this generation of an HTTPRoute at the Gateway, and if not, why.

    None while no controller has decided.
    """
    reason = "no controller has answered: the Gateway may have none that accepts routes"
    namespace, _, name = gateway.partition("/")
    for parent in route.get("status", {}).get("parents", []):
        ref = parent["parentRef"]
        if (ref.get("namespace") or route["metadata"].get("namespace"), ref["name"]) != (namespace, name):
            continue
        conditions = {one["type"]: one for one in parent.get("conditions", []) if _is_about(one, generation)}
        accepted, resolved = conditions.get("Accepted", {}), conditions.get("ResolvedRefs", {})
        if accepted.get("status") == "False":
            return False, f"the Gateway's controller does not accept the route: {_reason(accepted)}"
        if resolved.get("status") == "False":
            # Some controllers report this until they have seen a new Service, so it is no refusal yet.
            reason = f"the Gateway's controller does not find what the route leads to: {_reason(resolved)}"
        elif accepted.get("status") == "True":
            return True, ""
    return None, reason


def _is_about(condition: Object, generation: int) -> bool:
    return bool(condition.get("observedGeneration", 0) >= generation)


def _reason(condition: Object) -> str:
    return f"{condition.get('reason', '')}: {condition.get('message', '')[:300]}"
