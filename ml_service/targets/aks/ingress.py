"""How clients get in: a Service, an Ingress, or a route whose weights are the share of a canary. See docs/aks.md.

Which of them is decided by the settings alone, never by what else the cluster knows.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from ml_service.config import Settings
from ml_service.errors import ConfigurationError, MlopsError, UnhealthyError
from ml_service.ports import Finding, Progress
from ml_service.targets.aks.client import Cluster, Forbidden, Object
from ml_service.targets.aks.deployment import CANARY, supporting, track_name

MESH = "mesh"
HTTP_ROUTE, VIRTUAL_SERVICE = "HTTPRoute", "VirtualService"

_GATEWAY_API = "gateway.networking.k8s.io/v1"
_ISTIO = ("networking.istio.io/v1", "networking.istio.io/v1beta1")
_INGRESS = ("networking.k8s.io/v1", "Ingress")
_SERVICE = ("v1", "Service")
_ROUTE_KIND = "mlops/route"

_LEADS_PATIENCE = 30.0
_ROUTERS_FOLLOW = 1.0
"""Seconds for a Service to lead to pods, and for kube-proxy, which writes its rules at most once a second."""

_ANSWER_PATIENCE = 30.0
_ANSWER_POLL = 0.5
"""Seconds for a Gateway's controller to say what it makes of a route, and between two looks."""


@dataclass(frozen=True)
class Route:
    """What shares the traffic: its kind, the version of its group, and the Gateway (``NAMESPACE/NAME`` or ``mesh``)."""

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


@dataclass(frozen=True)
class Leftover:
    """An object that we made under other settings."""

    api: str
    kind: str
    name: str
    why: str


def find(cluster: Cluster, gateway: str) -> Route:
    """The kind of route for the Gateway of that name: Gateway API's where it knows one, else Istio's.

    Raises:
        ConfigurationError: neither knows it.
        UnavailableError: the cluster does not let us look, and what it lets us see is not there.
    """
    refused: Forbidden | None = None
    looked: list[str] = []
    for api, kind in _served(cluster):
        if gateway == MESH and kind == VIRTUAL_SERVICE:
            return Route(api, kind, gateway)
        looked.append(api)
        try:
            if gateway != MESH and _knows(cluster, api, gateway):
                return Route(api, kind, gateway)
        except Forbidden as error:
            refused = error
    if refused:
        raise refused
    raise _not_found(cluster, gateway, looked)


def _served(cluster: Cluster) -> Iterator[tuple[str, str]]:
    if cluster.serves(_GATEWAY_API):
        yield _GATEWAY_API, HTTP_ROUTE
    istio = next((api for api in _ISTIO if cluster.serves(api)), "")
    if istio:
        yield istio, VIRTUAL_SERVICE


def _knows(cluster: Cluster, api: str, gateway: str) -> bool:
    namespace, _, name = gateway.partition("/")
    return cluster.get(api, "Gateway", name, namespace=namespace) is not None


def _not_found(cluster: Cluster, gateway: str, looked: Sequence[str]) -> ConfigurationError:
    where = f"AKS_GATEWAY={gateway}"
    if gateway == MESH or not looked:
        wanted = _ISTIO if gateway == MESH else (_GATEWAY_API, *_ISTIO)
        return ConfigurationError(
            f"the cluster at {cluster.address} serves none of {', '.join(wanted)}",
            where=where,
            next_step="install what it names on the cluster, or unset AKS_GATEWAY: an Ingress and pods then do",
        )
    return ConfigurationError(
        f"there is no Gateway of that name; looked for in {' and '.join(looked)}",
        where=where,
        next_step="see: kubectl get gateways --all-namespaces, and set AKS_GATEWAY to NAMESPACE/NAME of one",
    )


class Entrance:
    """The objects through which clients reach the deployment, but for the Service that it always has."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._aks = settings.aks
        self._canary_name = track_name(settings, CANARY)

    @functools.cached_property
    def route(self) -> Route | None:
        """What shares the traffic by weights; None where numbers of pods do. Raises what ``find`` raises."""
        return find(self._cluster, self._aks.gateway) if self._aks.gateway else None

    def objects(self) -> list[Object]:
        """The route, all of it to the version that serves, and the Service by which it would find a candidate."""
        route = self.route
        if route is None:
            return []
        namespace, _, name = route.gateway.rpartition("/")
        values = {
            "route_api": route.api,
            "route_kind": route.kind,
            "gateway": route.gateway,
            "gateway_namespace": namespace,
            "gateway_name": name,
        }
        folder = self._settings.root / "scoring" / "k8s"
        return supporting(self._settings, folder, ["service-canary", route.kind.lower()], values)

    def leftovers(self) -> list[Leftover]:
        """What we made and the settings do not want any more. Ask before anything is applied."""
        found: list[Leftover] = []
        if (self._aks.gateway or not self._aks.host) and self._own(*_INGRESS, self._aks.name):
            why = "AKS_GATEWAY is set" if self._aks.gateway else "AKS_HOST is not set"
            found.append(Leftover(*_INGRESS, self._aks.name, why))
        wanted = self.route.kind if self.route else ""
        why = "the Gateway has another kind of routes" if wanted else "AKS_GATEWAY is not set"
        others = [body for body in self._routes() if body["kind"] != wanted]
        found += [Leftover(body["apiVersion"], body["kind"], self._aks.name, why) for body in others]
        if not wanted and self._own(*_SERVICE, self._canary_name):
            found.append(Leftover(*_SERVICE, self._canary_name, why))
        return found

    def clear(self, leftovers: Sequence[Leftover]) -> None:
        """Remove them. An Ingress goes only when a Gateway's controller has taken the route.

        Raises:
            UnhealthyError: it has not; clients still get in by the Ingress.
        """
        if self.route and any(one.kind == "Ingress" for one in leftovers):
            if current := self._cluster.get(self.route.api, self.route.kind, self._aks.name):
                self._wait_for_answer(current)
        for one in leftovers:
            self._cluster.delete(one.api, one.kind, one.name)

    def remove(self) -> None:
        """Everything of ours, whatever the settings say now: what refers to something goes before it."""
        if self._own(*_INGRESS, self._aks.name):
            self._cluster.delete(*_INGRESS, self._aks.name)
        for body in self._routes():
            self._cluster.delete(body["apiVersion"], body["kind"], self._aks.name)
        if self._own(*_SERVICE, self._canary_name):
            self._cluster.delete(*_SERVICE, self._canary_name)

    def wait(self, there: Callable[[set[str]], bool], service: str = "") -> bool:
        """Until ``there`` accepts the pods that the Service leads to, and routers have had a moment to follow.

        False when it never did. The Service is that of the deployment, if none is named.
        """
        deadline = time.monotonic() + _LEADS_PATIENCE
        is_there = False
        while not is_there and time.monotonic() < deadline:
            points = self._cluster.get("v1", "Endpoints", service or self._aks.name) or {}
            found = [one for part in points.get("subsets") or [] for one in part.get("addresses", [])]
            is_there = there({one["targetRef"]["name"] for one in found})
            time.sleep(0 if is_there else 0.2)
        time.sleep(_ROUTERS_FOLLOW)
        return is_there

    def send(self, percent: int, pods: set[str], progress: Progress) -> None:
        """Give the candidate that share, once its Service leads to ``pods``: before, nobody would answer.

        Raises:
            UnhealthyError: it does not; or the Gateway's controller refuses the route, or says nothing to it.
        """
        if not self.wait(lambda led: pods <= led, self._canary_name):
            raise UnhealthyError(
                f"does not lead to the candidate's pods after {_LEADS_PATIENCE:g} s",
                where=f"Service {self._canary_name}",
                next_step="see inv logs --target aks; what served before still serves",
            )
        for body in self.objects():
            if self.route and body["kind"] == self.route.kind:
                applied = self._cluster.apply(weighed(body, self._aks.name, percent), force=True)
                progress(f"{self.route}: {percent} % to the candidate")
                self._wait_for_answer(applied)

    def close(self) -> None:
        """Give the candidate nothing any more, and routers a moment to follow; whatever the settings say now."""
        changed = False
        for body in self._routes():
            after = weighed(_ours_in(body), self._aks.name, 0)
            if after["spec"] != _ours_in(body)["spec"]:
                self._cluster.apply(after, force=True)
                changed = True
        if changed:
            time.sleep(self._aks.drain_seconds)

    def diagnose(self) -> list[Finding]:
        """Which kind of weights is used, if any is to be."""
        try:
            return [Finding("weights", True, str(self.route))] if self.route else []
        except MlopsError as error:
            where = f"{error.where}: " if error.where else ""
            return [Finding("weights", False, f"{where}{error.what}", error.next_step)]

    def url(self, wait: float) -> str:
        """Where clients get in. A load balancer's address takes time: at most ``wait`` seconds."""
        if self._aks.host:
            # A sidecar shares out plain requests only, and encrypts them itself on their way.
            return f"{'http' if self._aks.gateway == MESH else 'https'}://{self._aks.host}"
        deadline = time.monotonic() + wait
        while True:
            service = self._cluster.get(*_SERVICE, self._aks.name) or {"spec": {}}
            if url := self._service_url(service):
                return url
            if time.monotonic() > deadline:
                return "http://pending"
            time.sleep(1)

    def _service_url(self, service: Object) -> str:
        kind = service["spec"].get("type", "ClusterIP")
        if kind == "LoadBalancer":
            points = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
            return f"http://{points[0].get('ip') or points[0]['hostname']}" if points else ""
        if kind == "NodePort":
            return f"http://{self._cluster.host}:{service['spec']['ports'][0]['nodePort']}"
        return f"http://{service['spec'].get('clusterIP', 'pending')}"

    def _own(self, api: str, kind: str, name: str) -> Object | None:
        """The object, if it is one that we made."""
        body = self._cluster.get(api, kind, name) if self._cluster.serves(api) else None
        labels = body["metadata"].get("labels", {}) if body else {}
        return body if labels.get("app.kubernetes.io/managed-by") == "mlops-tasks" else None

    def _routes(self) -> list[Object]:
        """The routes that we made, whatever the settings say now.

        They are looked for only where the Service is that is made before them and removed after them. So a role without
        rights on routes, and a cluster that knows routes of others, change nothing.
        """
        service = self._own(*_SERVICE, self._canary_name)
        if service is None:
            return []
        meant = service["metadata"].get("annotations", {}).get(_ROUTE_KIND)
        found: list[Object] = []
        for api, kind in _served(self._cluster):
            # Who may not look at the other kind has not made one.
            with nullcontext() if kind == meant else suppress(Forbidden):
                if body := self._own(api, kind, self._aks.name):
                    found.append({**body, "apiVersion": api, "kind": kind})
        return found

    def _wait_for_answer(self, route: Object) -> None:
        """Until a controller has accepted this generation of an HTTPRoute. A VirtualService is answered by nobody."""
        if route["kind"] != HTTP_ROUTE:
            return
        deadline = time.monotonic() + _ANSWER_PATIENCE
        while True:
            now = self._cluster.get(route["apiVersion"], route["kind"], self._aks.name) or route
            is_taken, why = answer(now, route["metadata"]["generation"], self._aks.gateway)
            if is_taken:
                return
            if is_taken is False or time.monotonic() > deadline:
                raise UnhealthyError(
                    why,
                    where=f"{HTTP_ROUTE} {self._aks.name} at Gateway {self._aks.gateway}",
                    next_step="see that Gateway: its controller must run, and its listener allow the host and the "
                    "namespace; what served before still serves",
                )
            time.sleep(_ANSWER_POLL)


def weighed(route: Object, name: str, percent: int) -> Object:
    """The same route with ``percent`` for the candidate of the deployment ``name`` and the rest for what serves."""
    weights = {name: 100 - percent, f"{name}-{CANARY}": percent}
    after = copy.deepcopy(route)
    for target, entry in _backends(after):
        if target in weights:
            entry["weight"] = weights[target]
    return after


def _backends(route: Object) -> Iterator[tuple[str, Object]]:
    """Each Service that the route leads to, by name, with the entry that holds its weight."""
    for rule in route["spec"].get("rules", []):
        yield from ((entry["name"], entry) for entry in rule.get("backendRefs", []))
    for rule in route["spec"].get("http", []):
        yield from ((entry["destination"]["host"], entry) for entry in rule.get("route", []))


_OUR_FIELDS = ("parentRefs", "hostnames", "rules", "hosts", "gateways", "http")


def _ours_in(route: Object) -> Object:
    """A route as it is, without what is not ours: to be applied again."""
    metadata = {"name": route["metadata"]["name"], "labels": route["metadata"]["labels"]}
    spec = {name: value for name, value in route["spec"].items() if name in _OUR_FIELDS}
    return {"apiVersion": route["apiVersion"], "kind": route["kind"], "metadata": metadata, "spec": spec}


def answer(route: Object, generation: int, gateway: str) -> tuple[bool | None, str]:
    """Whether a controller takes this generation of an HTTPRoute at the Gateway (None: not said yet), and why not."""
    why = "no controller has answered: nobody says that the Gateway takes the route"
    namespace, _, name = gateway.partition("/")
    for parent in route.get("status", {}).get("parents", []):
        ref = parent["parentRef"]
        if (ref.get("namespace") or route["metadata"].get("namespace"), ref["name"]) != (namespace, name):
            continue
        said = {one["type"]: one for one in parent.get("conditions", []) if _is_about(one, generation)}
        accepted, resolved = said.get("Accepted", {}), said.get("ResolvedRefs", {})
        if accepted.get("status") == "False":
            return False, f"the Gateway's controller does not accept the route: {_reason(accepted)}"
        if resolved.get("status") == "False":
            # Some say so until they have seen a new Service, so this is waited for.
            why = f"the Gateway's controller does not find what the route leads to: {_reason(resolved)}"
        elif accepted.get("status") == "True":
            return True, ""
    return None, why


def _is_about(condition: Object, generation: int) -> bool:
    return bool(condition.get("observedGeneration", 0) >= generation)


def _reason(condition: Object) -> str:
    return f"{condition.get('reason', '')}: {condition.get('message', '')[:300]}"
