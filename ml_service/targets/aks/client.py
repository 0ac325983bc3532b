"""One namespace of a Kubernetes cluster, through the official client; refusals become errors one can act on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import quote, urlsplit

from ml_service.errors import MlopsError, UnavailableError

FIELD_MANAGER = "mlops-tasks"

Object = dict[str, Any]

_PLURALS: Mapping[str, str] = {
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "Service": "services",
    "Endpoints": "endpoints",
    "ServiceAccount": "serviceaccounts",
    "Secret": "secrets",
    "Pod": "pods",
    "Event": "events",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Ingress": "ingresses",
    "NetworkPolicy": "networkpolicies",
    "Lease": "leases",
    "Gateway": "gateways",
    "HTTPRoute": "httproutes",
    "VirtualService": "virtualservices",
}
_TIMEOUT = (5, 60)
"""Seconds to connect, and to wait for an answer."""


class Conflict(UnavailableError):
    """Somebody else changed the object, or owns the fields that we would change."""


class Forbidden(UnavailableError):
    """We lack the right, or the namespace lacks the quota."""


class _Impossible(UnavailableError):
    """The server cannot do that to an object as it is now, such as read a pod that has not started."""


class Cluster:
    """Reads and writes objects of ``namespace``; objects are dictionaries, as in their manifests."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.before_write: Callable[[], None] = lambda: None
        """Called before each change, and may refuse it by an exception."""
        self._groups: dict[str, bool] = {}

    @property
    def address(self) -> str:
        """Where the cluster's API answers."""
        return str(self.api.configuration.host)

    @property
    def host(self) -> str:
        """The host of that address."""
        return urlsplit(self.address).hostname or ""

    def serves(self, api_version: str) -> bool:
        """Whether the cluster has this version of a group."""
        if api_version not in self._groups:
            root = "/api" if "/" not in api_version else "/apis"
            self._groups[api_version] = self._call("GET", f"{root}/{api_version}", absent_ok=True) is not None
        return self._groups[api_version]

    def get(self, api_version: str, kind: str, name: str, *, namespace: str = "") -> Object | None:
        """The object, or None; of another namespace where one is given."""
        return self._call("GET", self._path(api_version, kind, name, namespace), absent_ok=True)

    def list(self, api_version: str, kind: str, **query: str) -> Sequence[Object]:
        """The objects that match, such as ``labelSelector="a=b"``."""
        found = self._call("GET", self._path(api_version, kind), query=query)
        return cast(list[Object], found["items"]) if found else []

    def apply(self, body: Object, *, dry_run: bool = False, force: bool = False) -> Object:
        """Server-side apply under our own field manager; the object as it is (or would be) afterwards.

        Raises:
            Conflict: others own some of the fields, and ``force`` is off.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": _flag(force), **({"dryRun": "All"} if dry_run else {})}
        path = self._path(body["apiVersion"], body["kind"], body["metadata"]["name"])
        return self._required(
            self._call("PATCH", path, query=query, body=body, content_type="application/apply-patch+yaml")
        )

    def create(self, body: Object) -> Object:
        """Raises Conflict when it exists."""
        return self._required(self._call("POST", self._path(body["apiVersion"], body["kind"]), body=body))

    def replace(self, body: Object) -> Object:
        """Raises Conflict when it changed since it was read."""
        path = self._path(body["apiVersion"], body["kind"], body["metadata"]["name"])
        return self._required(self._call("PUT", path, body=body))

    def scale(self, deployment: str, replicas: int) -> None:
        """Set the number of pods of a Deployment."""
        path = self._path("apps/v1", "Deployment", deployment) + "/scale"
        self._call("PATCH", path, body={"spec": {"replicas": replicas}}, content_type="application/merge-patch+json")

    def delete(self, api_version: str, kind: str, name: str) -> None:
        """Remove the object and what it owns; nothing to do when it is not there."""
        body = {"propagationPolicy": "Background"}
        self._call("DELETE", self._path(api_version, kind, name), body=body, absent_ok=True)

    def log(self, pod: str, lines: int, *, previous: bool = False, stamped: bool = False) -> Sequence[str]:
        """The last lines of a pod, oldest first; those of the container before its restart with ``previous``.

        A pod that has not started, or is gone, has none. With ``stamped`` each begins with its time and a blank.
        """
        query = {"tailLines": str(lines), "previous": _flag(previous), "timestamps": _flag(stamped)}
        path = self._path("v1", "Pod", pod) + "/log"
        try:
            text = self._raw("GET", path, query=query)
        except (_Impossible, _Absent):
            return []
        return text.splitlines()

    def may(self, verb: str, group: str, resource: str, part: str = "", *, namespace: str = "") -> bool:
        """Whether we may do that in the namespace, or in the one that is given."""
        attributes = {"namespace": namespace or self.namespace, "verb": verb, "group": group, "resource": resource}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": part}},
        }
        answer = self._call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
        return bool(self._required(answer)["status"]["allowed"])

    def _path(self, api_version: str, kind: str, name: str = "", namespace: str = "") -> str:
        root = "/api" if "/" not in api_version else "/apis"
        path = f"{root}/{api_version}/namespaces/{quote(namespace or self.namespace)}/{_PLURALS[kind]}"
        return f"{path}/{quote(name)}" if name else path

    @staticmethod
    def _required(answer: Object | None) -> Object:
        assert answer is not None
        return answer

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        absent_ok: bool = False,
    ) -> Object | None:
        try:
            return cast(Object, json.loads(self._raw(method, path, query, body, content_type)))
        except _Absent as error:
            if absent_ok:
                return None
            raise error.refusal from None

    def _raw(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> str:
        if method != "GET":
            self.before_write()
        with self._translated():
            request = self.api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json, */*", "Content-Type": content_type},
                # The client turns JSON bodies into text itself; an apply patch is YAML, of which JSON is a part.
                body=json.dumps(body) if content_type.endswith("yaml") else body,
                auth_settings=["BearerToken"],
            )
            answer = self.api.call_api(*request, _request_timeout=_TIMEOUT)
            text = (answer.read() or b"").decode("utf-8", "replace")
        if answer.status >= 400:
            raise _refusal(answer.status, text, self.address)
        return str(text)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise self.unreachable(str(error.reason).splitlines()[0][:200]) from None
        except (HTTPError, OSError) as error:
            raise self.unreachable(type(error).__name__) from None

    def unreachable(self, why: str) -> UnavailableError:
        """The error for a cluster that does not answer."""
        return UnavailableError(
            f"the cluster cannot be reached ({why})",
            where=self.address,
            next_step="check KUBECONFIG and the network; what serves there still serves",
        )


class _Absent(Exception):
    """The server knows no such thing."""

    def __init__(self, refusal: MlopsError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def _flag(value: bool) -> str:
    return str(value).lower()


_NEXT_STEPS: Mapping[int, str] = {
    401: "sign in again: az aks get-credentials, or a valid KUBECONFIG",
    403: "give the identity the rights listed in docs/aks.md, or the namespace the quota it needs",
    404: "create what it names, such as: kubectl create namespace NAME",
    409: "undo that change, or take the fields over: AKS_TAKE_OVER=true inv deploy --target aks",
}


def _refusal(status: int, body: str, where: str) -> Exception:
    """The cluster's own words, with what helps."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:300]
    text = f"the cluster refused (status {status}): {message}"
    kind = {400: _Impossible, 403: Forbidden, 409: Conflict}.get(status, UnavailableError)
    error = kind(text, where=where, next_step=_NEXT_STEPS.get(status, "see the cluster's own message above"))
    return _Absent(error) if status == 404 else error
