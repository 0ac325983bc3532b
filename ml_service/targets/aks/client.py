"""One namespace of a Kubernetes cluster, through the official client. Its refusals become MlopsErrors.

Objects are written by server-side apply: the manifest is sent whole, under a field manager of our own, and the server
records who owns which field. From that follow four things that the other modules rely on:

- A field that we sent before and do not send any more is deleted. So every apply sends all that we want to keep.
- A field that we never send is not ours: ``replicas`` belongs to the autoscaler, and an apply leaves it alone.
- A field that somebody else has set to another value since is not overwritten: the server answers with a Conflict that
  names him. ``force`` takes the field over, for objects that are ours alone, or when AKS_TAKE_OVER says so.
- A dry run returns the object as it would be. The difference to the present one is what a plan shows.
"""

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
"""Seconds to connect, and to wait for a response."""


class Conflict(UnavailableError):
    """Somebody else changed the object, or owns the fields that we would change."""


class Forbidden(UnavailableError):
    """The right is missing, or the namespace's quota is used up."""


class _Impossible(UnavailableError):
    """The object is in a state that does not allow it, such as a pod that has not started and has no log."""


class Cluster:
    """Reads and writes objects of ``namespace``. Objects are dictionaries, as in their manifests.

    Each method raises UnavailableError when the cluster does not answer, or refuses.
    """

    def __init__(self, api: Any, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.before_write: Callable[[], None] = lambda: None
        """Called before each write; an exception from it prevents the write."""
        self._groups: dict[str, bool] = {}

    @property
    def address(self) -> str:
        """The URL of the cluster's API."""
        return str(self.api.configuration.host)

    @property
    def host(self) -> str:
        """The host in that URL."""
        return urlsplit(self.address).hostname or ""

    def serves(self, api_version: str) -> bool:
        """Return whether the cluster serves a version of a group, such as ``autoscaling/v2``."""
        if api_version not in self._groups:
            root = "/api" if "/" not in api_version else "/apis"
            self._groups[api_version] = self._call("GET", f"{root}/{api_version}", absent_ok=True) is not None
        return self._groups[api_version]

    def get(self, api_version: str, kind: str, name: str, *, namespace: str = "") -> Object | None:
        """Return the object, or None. ``namespace`` is another one than that of this client."""
        return self._call("GET", self._path(api_version, kind, name, namespace), absent_ok=True)

    def list(self, api_version: str, kind: str, **query: str) -> Sequence[Object]:
        """Return the objects that match, such as ``labelSelector="a=b"``."""
        response = self._call("GET", self._path(api_version, kind), query=query)
        return cast(list[Object], response["items"]) if response else []

    def apply(self, body: Object, *, dry_run: bool = False, force: bool = False) -> Object:
        """Apply under our own field manager, and return the object as it is (or with ``dry_run`` would be) afterwards.

        Raises:
            Conflict: somebody else owns one of the fields, and ``force`` is off.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": _flag(force), **({"dryRun": "All"} if dry_run else {})}
        path = self._path(body["apiVersion"], body["kind"], body["metadata"]["name"])
        return self._required(
            self._call("PATCH", path, query=query, body=body, content_type="application/apply-patch+yaml")
        )

    def create(self, body: Object) -> Object:
        """Create an object that does not exist yet.

        Raises:
            Conflict: it exists.
        """
        return self._required(self._call("POST", self._path(body["apiVersion"], body["kind"]), body=body))

    def replace(self, body: Object) -> Object:
        """Replace an object that was read before.

        Raises:
            Conflict: it has changed since (its ``resourceVersion`` is another one).
        """
        path = self._path(body["apiVersion"], body["kind"], body["metadata"]["name"])
        return self._required(self._call("PUT", path, body=body))

    def scale(self, deployment: str, replicas: int) -> None:
        """Set the number of pods of a Deployment."""
        path = self._path("apps/v1", "Deployment", deployment) + "/scale"
        self._call("PATCH", path, body={"spec": {"replicas": replicas}}, content_type="application/merge-patch+json")

    def delete(self, api_version: str, kind: str, name: str) -> None:
        """Delete the object and what it owns; an object that does not exist is no error."""
        body = {"propagationPolicy": "Background"}
        self._call("DELETE", self._path(api_version, kind, name), body=body, absent_ok=True)

    def log(self, pod: str, lines: int, *, previous: bool = False, stamped: bool = False) -> Sequence[str]:
        """Return the last ``lines`` log lines of a pod, oldest first.

        A pod that has not started, or does not exist any more, has none. ``previous`` means the container before its
        restart. With ``stamped`` each line begins with its timestamp (RFC 3339) and a blank.
        """
        query = {"tailLines": str(lines), "previous": _flag(previous), "timestamps": _flag(stamped)}
        path = self._path("v1", "Pod", pod) + "/log"
        try:
            text = self._raw("GET", path, query=query)
        except (_Impossible, _Absent):
            return []
        return text.splitlines()

    def may(self, verb: str, group: str, resource: str, part: str = "", *, namespace: str = "") -> bool:
        """Return whether the cluster allows us ``verb`` on a resource, or on its subresource ``part``.

        ``namespace`` is another one than that of this client.
        """
        attributes = {"namespace": namespace or self.namespace, "verb": verb, "group": group, "resource": resource}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": part}},
        }
        review = self._call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
        return bool(self._required(review)["status"]["allowed"])

    def _path(self, api_version: str, kind: str, name: str = "", namespace: str = "") -> str:
        root = "/api" if "/" not in api_version else "/apis"
        path = f"{root}/{api_version}/namespaces/{quote(namespace or self.namespace)}/{_PLURALS[kind]}"
        return f"{path}/{quote(name)}" if name else path

    @staticmethod
    def _required(response: Object | None) -> Object:
        assert response is not None
        return response

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
                # The client serializes JSON bodies itself. An apply patch is YAML, and JSON is valid YAML.
                body=json.dumps(body) if content_type.endswith("yaml") else body,
                auth_settings=["BearerToken"],
            )
            response = self.api.call_api(*request, _request_timeout=_TIMEOUT)
            text = (response.read() or b"").decode("utf-8", "replace")
        if response.status >= 400:
            raise _refusal(response.status, text, self.address)
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

    def unreachable(self, reason: str) -> UnavailableError:
        """Return the error for a cluster that does not answer."""
        return UnavailableError(
            f"the cluster cannot be reached ({reason})",
            where=self.address,
            next_step="check KUBECONFIG and the network; the deployment on the cluster still serves",
        )


class _Absent(Exception):
    """There is no such object, or no such API version."""

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
    """Return the error for a status that means refusal, with the server's own message."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:300]
    text = f"the cluster refused (status {status}): {message}"
    kind = {400: _Impossible, 403: Forbidden, 409: Conflict}.get(status, UnavailableError)
    error = kind(text, where=where, next_step=_NEXT_STEPS.get(status, "see the cluster's own message above"))
    return _Absent(error) if status == 404 else error
