"""How clients reach a deployment: a Service, an Ingress, or a route whose weights are a canary's share.

The settings alone decide which one it is, never what else the cluster serves.

Moving traffic is a matter of order, because several programs follow the API server, each at its own pace:

1. A pod gets ready, and the cluster adds it to the Endpoints of each Service that selects it.
2. kube-proxy on every node reads the Endpoints and rewrites its rules, at most once a second. Nothing reports when the
   last node has done so. Hence ``_PROXY_DELAY`` after each wait for Endpoints.
3. A Gateway's controller reads routes and configures its proxies. It reports that it has accepted a route in the
   route's status; a VirtualService has no such status.

So a weight is raised only after its Service leads to pods, and lowered before those pods are deleted, with
AKS_DRAIN_SECONDS in between for proxies that still use the old weights. An Ingress is deleted only after the route
that replaces it was accepted. At each moment every address that clients may use leads to pods that answer.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from ml_service.config import Settings
from ml_service.errors import MlopsError, UnhealthyError
from ml_service.ports import Finding, Progress
from ml_service.targets.aks.client import Cluster, Forbidden, Object
from ml_service.targets.aks.deployment import CANARY, supporting, track_name
from ml_service.targets.aks.route import (
    HTTP_ROUTE,
    MESH,
    Route,
    acceptance,
    find_route,
    own_part,
    served_kinds,
    with_weights,
)

_INGRESS = ("networking.k8s.io/v1", "Ingress")
_SERVICE = ("v1", "Service")
_ROUTE_KIND = "mlops/route"

_ENDPOINTS_TIMEOUT = 30.0
_ENDPOINTS_POLL = 0.2
_PROXY_DELAY = 1.0
_ACCEPTANCE_TIMEOUT = 30.0
_ACCEPTANCE_POLL = 0.5


@dataclass(frozen=True)
class Orphan:
    """An object that we created under other settings, and why it is not wanted any more."""

    api: str
    kind: str
    name: str
    reason: str


class Exposure:
    """The objects through which clients reach the deployment, except for the Service that it always has."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._aks = settings.aks
        self._canary_name = track_name(settings, CANARY)

    @functools.cached_property
    def route(self) -> Route | None:
        """The kind of route that shares the traffic by weights; None where numbers of pods share it.

        Raises:
            ConfigurationError: AKS_GATEWAY names a Gateway that the cluster does not have.
            UnavailableError: the cluster refuses the lookup.
        """
        return find_route(self._cluster, self._aks.gateway) if self._aks.gateway else None

    def manifests(self) -> list[Object]:
        """Return the canary's Service and the route, which sends everything to the stable version."""
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

    def orphans(self) -> list[Orphan]:
        """Return the objects that we created and that the settings do not ask for any more."""
        orphans: list[Orphan] = []
        if (self._aks.gateway or not self._aks.host) and self._read_own(*_INGRESS, self._aks.name):
            reason = "AKS_GATEWAY is set" if self._aks.gateway else "AKS_HOST is not set"
            orphans.append(Orphan(*_INGRESS, self._aks.name, reason))
        wanted = self.route.kind if self.route else ""
        reason = "the Gateway has another kind of routes" if wanted else "AKS_GATEWAY is not set"
        others = [body for body in self._own_routes() if body["kind"] != wanted]
        orphans += [Orphan(body["apiVersion"], body["kind"], self._aks.name, reason) for body in others]
        if not wanted and self._read_own(*_SERVICE, self._canary_name):
            orphans.append(Orphan(*_SERVICE, self._canary_name, reason))
        return orphans

    def delete_orphan(self, orphan: Orphan) -> None:
        """Delete an orphan; an Ingress only when a Gateway's controller has accepted the route that replaces it.

        Raises:
            UnhealthyError: it has not; clients still come by the Ingress.
        """
        if self.route and orphan.kind == "Ingress":
            if route := self._cluster.get(self.route.api, self.route.kind, self._aks.name):
                self._wait_for_acceptance(route)
        self._cluster.delete(orphan.api, orphan.kind, orphan.name)

    def delete(self) -> None:
        """Delete what we created under any settings. A route goes before the Service that it refers to."""
        if self._read_own(*_INGRESS, self._aks.name):
            self._cluster.delete(*_INGRESS, self._aks.name)
        for body in self._own_routes():
            self._cluster.delete(body["apiVersion"], body["kind"], self._aks.name)
        if self._read_own(*_SERVICE, self._canary_name):
            self._cluster.delete(*_SERVICE, self._canary_name)

    def wait_for_endpoints(self, accepts: Callable[[set[str]], bool], service: str = "") -> bool:
        """Wait until ``accepts`` is true of the pods that a Service leads to, and kube-proxy has had time to follow.

        Args:
            service: the Service's name; that of the deployment, if it is empty.

        Returns:
            False after _ENDPOINTS_TIMEOUT seconds.
        """
        deadline = time.monotonic() + _ENDPOINTS_TIMEOUT
        accepted = False
        while not accepted and time.monotonic() < deadline:
            endpoints = self._cluster.get("v1", "Endpoints", service or self._aks.name) or {}
            addresses = [one for part in endpoints.get("subsets") or [] for one in part.get("addresses", [])]
            accepted = accepts({one["targetRef"]["name"] for one in addresses})
            time.sleep(0 if accepted else _ENDPOINTS_POLL)
        time.sleep(_PROXY_DELAY)
        return accepted

    def set_weight(self, percent: int, pods: set[str], progress: Progress) -> None:
        """Send the canary ``percent`` of the traffic, once its Service leads to ``pods``.

        Raises:
            UnhealthyError: it does not, or the Gateway's controller does not accept the route.
        """
        if not self.wait_for_endpoints(lambda endpoints: pods <= endpoints, self._canary_name):
            raise UnhealthyError(
                f"does not lead to the candidate's pods after {_ENDPOINTS_TIMEOUT:g} s",
                where=f"Service {self._canary_name}",
                next_step="see inv logs --target aks; the version before still serves",
            )
        for body in self.manifests():
            if self.route and body["kind"] == self.route.kind:
                applied = self._cluster.apply(with_weights(body, self._aks.name, percent), force=True)
                progress(f"{self.route}: {percent} % to the candidate")
                self._wait_for_acceptance(applied)

    def reset_weights(self) -> None:
        """Send the canary nothing, whatever the settings are now, and give proxies AKS_DRAIN_SECONDS to follow."""
        changed = False
        for body in self._own_routes():
            before = own_part(body)
            after = with_weights(before, self._aks.name, 0)
            if after["spec"] != before["spec"]:
                self._cluster.apply(after, force=True)
                changed = True
        if changed:
            time.sleep(self._aks.drain_seconds)

    def diagnose(self) -> list[Finding]:
        """Return a finding about the kind of route, if AKS_GATEWAY asks for one."""
        try:
            return [Finding("weights", True, str(self.route))] if self.route else []
        except MlopsError as error:
            where = f"{error.where}: " if error.where else ""
            return [Finding("weights", False, f"{where}{error.what}", error.next_step)]

    def url(self, timeout: float) -> str:
        """Return the address for clients. A load balancer gets one late: wait at most ``timeout`` seconds for it."""
        if self._aks.host:
            # A sidecar shares plain requests only, and encrypts them itself.
            return f"{'http' if self._aks.gateway == MESH else 'https'}://{self._aks.host}"
        deadline = time.monotonic() + timeout
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

    def _read_own(self, api: str, kind: str, name: str) -> Object | None:
        """Return the object if it carries our label: the name alone does not make it ours."""
        body = self._cluster.get(api, kind, name) if self._cluster.serves(api) else None
        labels = body["metadata"].get("labels", {}) if body else {}
        return body if labels.get("app.kubernetes.io/managed-by") == "mlops-tasks" else None

    def _own_routes(self) -> list[Object]:
        """Return the routes that we created, whatever the settings are now.

        A route is created after the canary's Service and deleted before it, and that Service records the route's kind.
        So without the Service there is nothing to look for, and no right on routes is needed.
        """
        service = self._read_own(*_SERVICE, self._canary_name)
        if service is None:
            return []
        recorded = service["metadata"].get("annotations", {}).get(_ROUTE_KIND)
        routes: list[Object] = []
        for api, kind in served_kinds(self._cluster):
            # A role that may not read the other kind cannot have created one.
            with nullcontext() if kind == recorded else suppress(Forbidden):
                if body := self._read_own(api, kind, self._aks.name):
                    routes.append({**body, "apiVersion": api, "kind": kind})
        return routes

    def _wait_for_acceptance(self, route: Object) -> None:
        """Wait until a controller has accepted this generation of an HTTPRoute. A VirtualService has no such status."""
        if route["kind"] != HTTP_ROUTE:
            return
        deadline = time.monotonic() + _ACCEPTANCE_TIMEOUT
        while True:
            now = self._cluster.get(route["apiVersion"], route["kind"], self._aks.name) or route
            accepted, reason = acceptance(now, route["metadata"]["generation"], self._aks.gateway)
            if accepted:
                return
            if accepted is False or time.monotonic() > deadline:
                raise UnhealthyError(
                    reason,
                    where=f"{HTTP_ROUTE} {self._aks.name} at Gateway {self._aks.gateway}",
                    next_step="see that Gateway: its controller must run, and its listener allow the host and the "
                    "namespace; the version before still serves",
                )
            time.sleep(_ACCEPTANCE_POLL)
