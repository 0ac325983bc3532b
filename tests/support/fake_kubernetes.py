"""A Kubernetes API in memory, behind the seam where the official client is: server-side apply, rollouts, autoscaler.

It is there for what a real cluster shows only after long waiting, or not at all when it is old. Pods are objects
without processes; they get ready soon, unless their model is in ``broken``. Those of models in ``restarts`` have been
started again. ``refused`` maps a part of a path to the status that is answered; ``denied`` are resources that a review
of rights denies. Gateways are of any namespace, under ``gateways.GROUP`` and ``NAMESPACE/NAME``; ``accepts`` is what
their controller says to routes (None: nothing).
"""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from ml_service.targets.aks.client import Cluster, Object

_SERVED = ("v1", "apps/v1", "networking.k8s.io/v1", "coordination.k8s.io/v1", "autoscaling/v1")
_REVISION = "deployment.kubernetes.io/revision"
_LOOKS = 6
"""Requests that a pod takes to get ready, so that a rollout is seen while it is not complete."""
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class FakeKubernetes:
    """Give it to ``Cluster`` in the place of an ApiClient; ``served`` are versions of groups beside the usual ones."""

    def __init__(self, *served: str) -> None:
        self.configuration = SimpleNamespace(host="https://cluster.example")
        self.served = {*_SERVED, *served}
        self.objects: dict[tuple[str, str], Object] = {}
        self.broken: set[str] = set()
        self.restarts: set[str] = set()
        self.refused: dict[str, int] = {}
        self.logs: dict[str, str] = {}
        self.denied: set[str] = set()
        self.accepts: bool | None = True
        self.called: set[tuple[str, str]] = set()
        self.asked: list[tuple[str, str, str]] = []
        self.writes: list[tuple[str, str]] = []
        self._applied: dict[tuple[str, str], Object] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def cluster(self) -> Cluster:
        """A client of it, as the target has one."""
        return Cluster(self, "default")

    def param_serialize(self, method: str, path: str, **request: Any) -> tuple[str, str, dict[str, Any]]:
        """As the official client: what ``call_api`` takes."""
        return method, path, request

    def call_api(self, method: str, path: str, request: Mapping[str, Any], **_: Any) -> Any:
        """As the official client: the answer with its status."""
        with self._lock:
            status, answer = self._answer(method, path, dict(request["query_params"]), request["body"])
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return SimpleNamespace(status=status, read=lambda: text.encode())

    def pods(self, track: str) -> list[Object]:
        """The pods of a track, for a test to look at or to change."""
        return [pod for pod in self._all("pods") if pod["metadata"]["labels"]["mlops/track"] == track]

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        for part, status in self.refused.items():
            if part in path:
                return status, {"message": f"refused: {part}"}
        if path == _REVIEWS:
            return 201, self._review(body["spec"]["resourceAttributes"])
        group, _, rest = path.removeprefix("/apis/").removeprefix("/api/").partition("/namespaces/")
        if group not in self.served:
            return 404, {"message": "the server could not find the requested resource"}
        if not rest:
            return 200, {}
        namespace, plural, name, part = [*rest.split("/"), "", ""][:4]
        if plural == "gateways":
            plural, name = f"gateways.{group.partition('/')[0]}", f"{namespace}/{name}"
        return self._on_object(method, (plural, name), part, query, json.loads(body) if isinstance(body, str) else body)

    def _review(self, asked: Mapping[str, str]) -> Object:
        resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
        self.asked.append((asked["verb"], asked["group"], resource))
        return {"status": {"allowed": resource not in self.denied}}

    def _on_object(
        self, method: str, key: tuple[str, str], part: str, query: dict[str, str], body: Any
    ) -> tuple[int, Any]:
        self._control()
        self._note(method, key, part)
        if method == "GET":
            return self._read(key, part, query)
        if query.get("dryRun"):
            return 200, self._apply(key, body)
        self.writes.append((method, "/".join(filter(None, (*key, part)))))
        status, answer = self._write(method, key, part, body)
        self._control()
        return status, copy.deepcopy(self.objects.get(key, answer))

    def _note(self, method: str, key: tuple[str, str], part: str) -> None:
        """The rights that a call needs: to apply what is not there is to create it, dry run or not."""
        verbs = {"POST": "create", "PUT": "update", "DELETE": "delete", "PATCH": "patch"}
        resource = "/".join(filter(None, (key[0].partition(".")[0], part)))
        self.called.add((verbs.get(method) or ("get" if key[1] else "list"), resource))
        if method == "PATCH" and key not in self.objects:
            self.called.add(("create", resource))

    def _read(self, key: tuple[str, str], part: str, query: dict[str, str]) -> tuple[int, Any]:
        plural, name = key
        if part == "log":
            return 200, self.logs.get(name, "")
        if plural == "endpoints":
            return 200, {"subsets": [{"addresses": list(self._addresses(name))}]}
        if not name:
            wanted = dict(item.split("=") for item in query.get("labelSelector", "").split(",") if item)
            found = [it for it in self._all(plural) if wanted.items() <= it["metadata"].get("labels", {}).items()]
            return 200, {"items": found}
        one = self.objects.get(key)
        return (200, one) if one else (404, {"message": f"{plural} {name} not found"})

    def _write(self, method: str, key: tuple[str, str], part: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            key = (key[0], body["metadata"]["name"])
            if key in self.objects:
                return 409, {"message": "exists"}
            if "stringData" in body:
                coded = {k: base64.b64encode(v.encode()).decode() for k, v in body.pop("stringData").items()}
                body = {**body, "data": coded}
            self._store(key, body)
        elif method == "PUT":
            now = self.objects.get(key, {"metadata": {}})
            if now["metadata"].get("resourceVersion") != body["metadata"].get("resourceVersion"):
                return 409, {"message": "changed"}
            self._store(key, body)
        elif method == "DELETE":
            if self.objects.pop(key, None) is None:
                return 404, {"message": "not found"}
            self._applied.pop(key, None)
        elif part == "scale":
            now = copy.deepcopy(self.objects[key])
            now["spec"]["replicas"] = body["spec"]["replicas"]
            self._store(key, now)
        else:
            self._store(key, self._apply(key, body))
            self._applied[key] = body
        return 200, body

    def _apply(self, key: tuple[str, str], body: Object) -> Object:
        """What was applied before and is no more is taken away, as the server does for fields of one manager."""
        after: Object = _merged(copy.deepcopy(self.objects.get(key, {})), self._applied.get(key, {}), body)
        if key[0] == "deployments":
            after["spec"].setdefault("replicas", 1)
        if key[0] == "services":
            after["spec"].setdefault("clusterIP", "10.0.0.1")
        return after

    def _store(self, key: tuple[str, str], body: Object) -> None:
        before = self.objects.get(key, {"metadata": {}})
        metadata = {**body["metadata"], "resourceVersion": str(next(self._numbers))}
        changed = before.get("spec") != body.get("spec")
        metadata["generation"] = before["metadata"].get("generation", 0) + int(changed)
        self.objects[key] = {**body, "metadata": metadata}

    def _all(self, plural: str) -> list[Object]:
        return [body for (kind, _), body in sorted(self.objects.items()) if kind == plural]

    def _addresses(self, name: str) -> Iterator[Object]:
        """The ready pods that the Service of that name selects."""
        selector = self.objects[("services", name)]["spec"]["selector"]
        for pod in self._all("pods"):
            if selector.items() <= pod["metadata"]["labels"].items() and _is_ready(pod):
                yield {"targetRef": {"name": pod["metadata"]["name"]}}

    # The controllers.

    def _control(self) -> None:
        for scaler in self._all("horizontalpodautoscalers"):
            self._autoscale(scaler["spec"])
        names = {body["metadata"]["name"] for body in self._all("deployments")}
        for plural in ("pods", "replicasets"):
            for body in self._all(plural):
                if body["owner"] not in names:
                    del self.objects[(plural, body["metadata"]["name"])]
        for deployment in self._all("deployments"):
            self._roll(deployment)
        for route in self._all("httproutes"):
            route["status"] = {"parents": [] if self.accepts is None else [self._answered(route)]}

    def _answered(self, route: Object) -> Object:
        reason = "Accepted" if self.accepts else "NotAllowedByListeners"
        said = {"type": "Accepted", "status": str(self.accepts), "reason": reason, "message": "as the test wants it"}
        generation = route["metadata"]["generation"]
        return {
            "parentRef": route["spec"]["parentRefs"][0],
            "conditions": [{**said, "observedGeneration": generation}],
        }

    def _autoscale(self, spec: Object) -> None:
        """Within its limits; one with no replicas at all is left alone, as by the real one."""
        found = self.objects.get(("deployments", spec["scaleTargetRef"]["name"]))
        if found and found["spec"]["replicas"]:
            wanted = min(max(found["spec"]["replicas"], spec["minReplicas"]), spec["maxReplicas"])
            found["spec"]["replicas"] = wanted

    def _roll(self, deployment: Object) -> None:
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        code = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:8]
        self._revise(deployment, code)
        pods = [pod for pod in self._all("pods") if pod["owner"] == name]
        new = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] == code]
        while len(new) < spec["replicas"]:
            new.append(self._start(name, spec["template"], code))
        works = spec["template"]["metadata"]["annotations"]["mlops/model"] not in self.broken
        old = [pod for pod in pods if pod not in new]
        for pod in new:
            pod["looks"] += 1
            if pod["status"]["conditions"][0]["status"] in ("False", "True"):
                pod["status"]["conditions"][0]["status"] = str(works and pod["looks"] > _LOOKS)
        done = all(map(_is_ready, new))
        for pod in [*new[spec["replicas"] :], *(old if done or not spec["replicas"] else [])]:
            del self.objects[("pods", pod["metadata"]["name"])]
        left = [pod for pod in self._all("pods") if pod["owner"] == name]
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(left),
            "updatedReplicas": min(len(new), spec["replicas"]),
            "availableReplicas": sum(map(_is_ready, left)),
        }

    def _revise(self, deployment: Object, code: str) -> None:
        """The newest ReplicaSet and its Deployment carry the same revision."""
        name = deployment["metadata"]["name"]
        key = ("replicasets", f"{name}-{code}")
        own = [one for one in self._all("replicasets") if one["owner"] == name]
        newest = max((int(one["metadata"]["annotations"][_REVISION]) for one in own), default=0)
        if key in self.objects and int(self.objects[key]["metadata"]["annotations"][_REVISION]) == newest:
            revision = newest
        else:
            revision = newest + 1
        labels = {**deployment["spec"]["template"]["metadata"]["labels"], "pod-template-hash": code}
        metadata = {"name": key[1], "labels": labels, "annotations": {_REVISION: str(revision)}}
        self.objects[key] = {"metadata": metadata, "owner": name}
        deployment["metadata"].setdefault("annotations", {})[_REVISION] = str(revision)

    def _start(self, owner: str, template: Object, code: str) -> Object:
        name = f"{owner}-{code}-{next(self._numbers)}"
        metadata = copy.deepcopy(template["metadata"])
        again = metadata["annotations"]["mlops/model"] in self.restarts
        ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}} if again else {}
        container = {"restartCount": int(again), "state": {"running": {}}, "lastState": ended}
        pod = {
            "metadata": {**metadata, "name": name, "labels": {**metadata["labels"], "pod-template-hash": code}},
            "owner": owner,
            "looks": 0,
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [container],
            },
        }
        self.objects[("pods", name)] = pod
        return pod


def _is_ready(pod: Object) -> bool:
    return bool(pod["status"]["conditions"][0]["status"] == "True")


def _merged(old: Any, last: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return copy.deepcopy(new)
    last = last if isinstance(last, dict) else {}
    kept = {name: value for name, value in old.items() if name in new or name not in last}
    return {**kept, **{name: _merged(old.get(name), last.get(name), value) for name, value in new.items()}}
