"""Canaries by weights on a real cluster: accepted objects, their order, and what a controller says to them.

Nothing routes there. A thread plays the controller, so far as it writes the status of HTTPRoutes.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ml_service.errors import ConfigurationError, UnhealthyError
from ml_service.ports import Endpoint, Release
from ml_service.targets.aks import credentials, ingress
from ml_service.targets.aks.port_forward import forwarded
from tests.support.releases import EXAMPLES, deploy, make_release, version_at
from tests.support.rigs.aks import AksRig
from tests.support.route_schemas import VERSIONS, definition, violations
from tests.support.services import cluster_or_skip
from tests.support.settings import settings_for
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kubernetes, pytest.mark.filterwarnings("ignore:Unverified HTTPS")]

HOST = "model.example.com"
REQUEST = EXAMPLES["examples"][0]["request"]
KINDS = [
    ("gateway.networking.k8s.io", "HTTPRoute"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("networking.istio.io", "VirtualService"),
    ("networking.istio.io", "Gateway"),
]
LISTENERS = [{"name": "https", "port": 443, "protocol": "HTTPS"}]
SERVERS = [{"hosts": [HOST], "port": {"name": "https", "number": 443, "protocol": "HTTPS"}}]
GATEWAYS = {
    "HTTPRoute": ("gateway.networking.k8s.io", "v1", {"gatewayClassName": "tests", "listeners": LISTENERS}),
    "VirtualService": ("networking.istio.io", "v1", {"selector": {"istio": "ingressgateway"}, "servers": SERVERS}),
}
PLURALS = {"HTTPRoute": "httproutes", "VirtualService": "virtualservices"}


@pytest.fixture(scope="module")
def api() -> Any:
    """A client of the cluster with all rights."""
    kubeconfig = cluster_or_skip()
    from kubernetes import client, config

    found = config.new_client_from_config(kubeconfig)
    why = _no_custom_objects(client.VersionApi(found).get_code())
    if why and "custom-objects" not in os.environ.get("TESTS_NEED", "").split(","):
        pytest.skip(f"{why}; TESTS_NEED=kubernetes,custom-objects vouches for this one")
    return found


def _no_custom_objects(version: Any) -> str:
    """Why the API server is to be spared, or nothing.

    The JSON library of Kubernetes up to 1.23 reads maps in a way that Go 1.18 ended: a server of these two takes a
    definition and ends at the first object of it, and with it the cluster of everybody else. A build without a number
    may be any, and is taken to be old.
    """
    go = [int(part) for part in re.findall(r"\d+", version.go_version)[:2]]
    minor = int(re.sub(r"\D", "", version.minor) or 0)
    if go >= [1, 18] and minor < 24:
        return f"an API server {version.git_version} built with {version.go_version} ends at any custom object"
    return ""


@pytest.fixture(scope="module", autouse=True)
def kinds(api: Any) -> Iterator[None]:
    """The cluster knows the kinds of both, for as long as these tests run; what it knows already is left alone."""
    from kubernetes import client

    extensions = client.ApiextensionsV1Api(api)
    made = [body["metadata"]["name"] for group, kind in KINDS if _define(extensions, body := definition(group, kind))]
    wait_until(lambda: all(_is_established(extensions, group, kind) for group, kind in KINDS), "the kinds are known")
    yield
    for name in made:
        extensions.delete_custom_resource_definition(name)


def _define(extensions: Any, body: Any) -> bool:
    """Whether the definition is one of tests. One that tests which were killed have left is used, and removed."""
    from kubernetes.client import ApiException

    try:
        extensions.create_custom_resource_definition(body)
        return True
    except ApiException as error:
        if error.status != 409:
            raise
        labels = extensions.read_custom_resource_definition(body["metadata"]["name"]).metadata.labels or {}
        return labels.get("mlops/made-by") == "tests"


def _is_established(extensions: Any, group: str, kind: str) -> bool:
    name = definition(group, kind)["metadata"]["name"]
    found = extensions.read_custom_resource_definition(name).status.conditions or []
    return any((one.type, one.status) == ("Established", "True") for one in found)


@pytest.fixture(params=["HTTPRoute", "VirtualService"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of route that the cluster has a Gateway for."""
    return str(request.param)


@pytest.fixture
def gateway(api: Any, kind: str) -> Iterator[str]:
    """A Gateway for that kind, in a namespace of its own, as NAMESPACE/NAME."""
    with a_gateway(api, kind) as name:
        yield name


@contextmanager
def a_gateway(api: Any, kind: str) -> Iterator[str]:
    """An object that nothing listens at."""
    from kubernetes import client

    core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
    namespace = f"test-{uuid.uuid4().hex[:10]}"
    group, version, spec = GATEWAYS[kind]
    body = {"apiVersion": f"{group}/{version}", "kind": "Gateway", "metadata": {"name": "public"}, "spec": spec}
    assert violations(body) == []
    core.create_namespace({"metadata": {"name": namespace}})
    try:
        custom.create_namespaced_custom_object(group, version, namespace, "gateways", body)
        yield f"{namespace}/public"
    finally:
        core.delete_namespace(namespace)


@pytest.fixture
def rig(tmp_path: Path, gateway: str) -> Iterator[AksRig]:
    limits = {"AKS_MAX_REPLICAS": "2", "CANARY_MIN_REQUESTS": "5"}
    made = AksRig(tmp_path, AKS_HOST=HOST, AKS_GATEWAY=gateway, **limits)
    yield made
    made.close()


class Controller:
    """Says of every HTTPRoute of one deployment whether it is accepted, as a Gateway's controller does."""

    def __init__(self, rig: AksRig, *, accepts: bool = True) -> None:
        from kubernetes import client

        self._custom = client.CustomObjectsApi(rig.api)
        self._name = rig.name
        self._accepts = accepts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Controller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        from kubernetes.client import ApiException

        where = ("gateway.networking.k8s.io", "v1", "default", "httproutes", self._name)
        answered = 0
        while not self._stop.wait(0.2):
            try:
                route = self._custom.get_namespaced_custom_object(*where)
                generation = route["metadata"]["generation"]
                if generation != answered:
                    status = {"parents": [self._said(route["spec"]["parentRefs"][0], generation)]}
                    self._custom.patch_namespaced_custom_object_status(*where, {"status": status})
                    answered = generation
            except ApiException as error:
                assert error.status in (404, 409), error

    def _said(self, parent: Any, generation: int) -> Any:
        said = {
            "type": "Accepted",
            "status": str(self._accepts),
            "reason": "Accepted" if self._accepts else "NotAllowedByListeners",
            "message": "as the test wants it",
            "observedGeneration": generation,
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return {"parentRef": parent, "controllerName": "example.com/tests", "conditions": [said]}


class TestLife:
    """From the first deployment to the end of a canary, either way, for both kinds of routes."""

    def test_a_canary_is_promoted(self, rig: AksRig, tmp_path: Path, kind: str) -> None:
        """Exactly 10 % while one pod stands beside one; afterwards all goes to what was the candidate."""
        with Controller(rig):
            assert deploy(rig.target, standin(rig, tmp_path, "1")).url == f"https://{HOST}"
            assert weights(rig, kind) == (100, 0)
            assert led_to(rig, f"{rig.name}-canary") == set()
            status = deploy(rig.target, standin(rig, tmp_path, "2"), canary=10)
            state = "serving; canary: toy version 2 gets 10.0 % of the traffic"
            assert (status.model["version"], status.state) == ("1", state)
            assert weights(rig, kind) == (90, 10)
            assert (tracks(rig, rig.name), tracks(rig, f"{rig.name}-canary")) == ({"stable"}, {"canary"})
            scaler = rig.object("autoscaling/v1", "HorizontalPodAutoscaler")["spec"]
            assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 2)
            ask_each_pod(rig, times=5)
            assert rig.target.promote(print).model["version"] == "2"
        assert weights(rig, kind) == (100, 0)
        assert version_at(by_service(rig)) == "2"
        assert "mlops-tasks" in {entry["manager"] for entry in route(rig, kind)["metadata"]["managedFields"]}

    def test_a_canary_is_rolled_back_and_the_setting_is_unset(self, rig: AksRig, tmp_path: Path, kind: str) -> None:
        """First its weights go, then its pods; later the route and the second Service give way to an Ingress."""
        with Controller(rig):
            first = standin(rig, tmp_path, "1")
            deploy(rig.target, first)
            deploy(rig.target, standin(rig, tmp_path, "2"), canary=10)
            with observed(rig, kind) as seen:
                rig.target.rollback(lambda endpoint, package: None, print)
            assert seen == [(10, True), (0, True), (0, False)]
            assert rig.target.plan(first).steps == []
        without = rig.open(AKS_GATEWAY="")
        deploy(without, first)
        assert (route(rig, kind), service(rig, f"{rig.name}-canary")) == (None, None)
        assert rig.object("networking.k8s.io/v1", "Ingress")["spec"]["rules"][0]["host"] == HOST
        assert "mlops/track" not in rig.object("v1", "Service")["spec"]["selector"]
        with Controller(rig):
            deploy(rig.target, first)
            assert rig.object("networking.k8s.io/v1", "Ingress") is None
            assert weights(rig, kind) == (100, 0)
        rig.open(AKS_GATEWAY="").undeploy(print)
        assert (route(rig, kind), service(rig, f"{rig.name}-canary")) == (None, None)


@pytest.mark.parametrize("kind", ["HTTPRoute"], indirect=True)
class TestNoTraffic:
    """A share that nobody sends ends the canary, and the version before serves as it did."""

    def test_a_route_that_is_refused(self, rig: AksRig, tmp_path: Path, kind: str) -> None:
        """With the controller's own reason."""
        deploy(rig.target, standin(rig, tmp_path, "1"))
        with Controller(rig, accepts=False), pytest.raises(UnhealthyError, match="NotAllowedByListeners: as the test"):
            deploy(rig.target, standin(rig, tmp_path, "2"), canary=10)
        self._is_as_before(rig, kind)

    def test_a_route_that_nobody_answers(
        self, rig: AksRig, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a while."""
        monkeypatch.setattr(ingress, "_ACCEPTANCE_TIMEOUT", 2.0)
        deploy(rig.target, standin(rig, tmp_path, "1"))
        with pytest.raises(UnhealthyError, match=r"(?s)no controller has answered.*next: see that Gateway"):
            deploy(rig.target, standin(rig, tmp_path, "2"), canary=10)
        self._is_as_before(rig, kind)

    def _is_as_before(self, rig: AksRig, kind: str) -> None:
        status = rig.target.status()
        assert status is not None
        assert (status.model["version"], status.state, weights(rig, kind)) == ("1", "serving", (100, 0))
        assert version_at(by_service(rig)) == "1"


@pytest.mark.parametrize("kind", ["HTTPRoute"], indirect=True)
class TestWhatTheClusterSays:
    """Lookups and checks that are the cluster's own."""

    def test_a_gateway_that_is_not_there(self, rig: AksRig, tmp_path: Path, gateway: str) -> None:
        """Both groups were asked."""
        missing = f"{gateway.partition('/')[0]}/another"
        with pytest.raises(ConfigurationError, match="gateway.networking.k8s.io/v1 and networking.istio.io/v1"):
            rig.open(AKS_GATEWAY=missing).plan(standin(rig, tmp_path, "1"))

    def test_doctor_names_the_kind_of_weights(self, rig: AksRig, gateway: str) -> None:
        """And finds the rights on routes enough."""
        found = {one.subject: (one.ok, one.detail) for one in rig.target.diagnose()}
        weights = f"HTTPRoute (gateway.networking.k8s.io/v1) at Gateway {gateway}"
        assert (found["rights"], found["weights"]) == ((True, "enough"), (True, weights))

    def test_a_wrong_route_is_refused(self, rig: AksRig) -> None:
        """So the definitions do check: an accepted route is one that the pinned schema allows."""
        from kubernetes.client import ApiException, CustomObjectsApi

        for group, kind in KINDS[::2]:
            backends = [{"name": "x", "weight": "ten"}]
            spec = {"rules": [{"backendRefs": backends}]} if kind == "HTTPRoute" else {"http": [{"route": backends}]}
            body = {"kind": kind, "metadata": {"name": rig.name}, "spec": spec}
            for version in VERSIONS[group]:
                wrong = {**body, "apiVersion": f"{group}/{version}"}
                with pytest.raises(ApiException, match="(?s)422.*weight"):
                    CustomObjectsApi(rig.api).create_namespaced_custom_object(
                        group, version, "default", PLURALS[kind], wrong
                    )


def standin(rig: AksRig, directory: Path, version: str) -> Release:
    return rig.prepare(make_release(directory / f"release-{version}", version))


def route(rig: AksRig, kind: str) -> Any:
    """The deployment's route, or None."""
    group, version, _ = GATEWAYS[kind]
    return rig.object(f"{group}/{version}", kind)


def weights(rig: AksRig, kind: str) -> tuple[int, int]:
    """Of the version that serves, and of the candidate; in a route that the pinned schema allows."""
    body = route(rig, kind)
    assert violations(body) == []
    spec = body["spec"]
    stable, canary = spec["rules"][0]["backendRefs"] if kind == "HTTPRoute" else spec["http"][0]["route"]
    names = [one.get("name") or one["destination"]["host"] for one in (stable, canary)]
    assert names == [rig.name, f"{rig.name}-canary"]
    return stable["weight"], canary["weight"]


def cluster(rig: AksRig) -> Any:
    return credentials.connect(settings_for(rig.home, **rig.variables))


def service(rig: AksRig, name: str) -> Any:
    return cluster(rig).get("v1", "Service", name)


def led_to(rig: AksRig, name: str) -> set[str]:
    """The pods that a Service leads to."""
    points = cluster(rig).get("v1", "Endpoints", name) or {}
    return {one["targetRef"]["name"] for part in points.get("subsets") or [] for one in part.get("addresses", [])}


def tracks(rig: AksRig, name: str) -> set[str]:
    """What they hold."""
    led = led_to(rig, name)
    return {pod.metadata.labels["mlops/track"] for pod in rig.pods() if pod.metadata.name in led}


def by_service(rig: AksRig) -> Endpoint:
    """The Service from outside, past the Gateway."""
    return rig.open(AKS_GATEWAY="", AKS_HOST="").endpoint()


def ask_each_pod(rig: AksRig, times: int) -> None:
    """In the place of clients that the Gateway would share out."""
    key = rig.target.keys().primary
    for pod in rig.pods():
        with forwarded(cluster(rig), pod.metadata.name, 8080) as url:
            for _ in range(times):
                version_at(Endpoint(url, key))


@contextmanager
def observed(rig: AksRig, kind: str) -> Iterator[list[tuple[int, bool]]]:
    """The states that follow each other: the candidate's weight, and whether its Service leads to a pod."""
    seen: list[tuple[int, bool]] = []
    stop = threading.Event()

    def look() -> None:
        while True:
            ends = stop.is_set()
            # In this order: a share for nobody is then one for certain.
            is_led_to = bool(led_to(rig, f"{rig.name}-canary"))
            now = (weights(rig, kind)[1], is_led_to)
            if seen[-1:] != [now]:
                seen.append(now)
            if ends:
                return

    watching = threading.Thread(target=look)
    watching.start()
    wait_until(lambda: bool(seen), "the canary is seen")
    try:
        yield seen
    finally:
        wait_until(lambda: not led_to(rig, f"{rig.name}-canary"), "the candidate's pods are gone")
        stop.set()
        watching.join()
