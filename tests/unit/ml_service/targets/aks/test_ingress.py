"""Routes with weights: what is rendered is valid by the pinned schemas, and is set and taken back in a safe order."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ml_service.config import AksSettings
from ml_service.errors import ConfigurationError, UnavailableError, UnhealthyError, UsageError
from ml_service.targets.aks import canary, canary_metrics, ingress
from ml_service.targets.aks.canary import Share
from ml_service.targets.aks.ingress import Exposure
from ml_service.targets.aks.route import acceptance, with_weights
from tests.support.aks_scenario import NAME, AksScenario, at_gateway, without_waiting
from tests.support.releases import no_verification
from tests.support.route_schemas import violations

pytest.importorskip("kubernetes")

GATEWAY_API, ISTIO, OLD_ISTIO = "gateway.networking.k8s.io/v1", "networking.istio.io/v1", "networking.istio.io/v1beta1"
PLURALS = {GATEWAY_API: "httproutes", ISTIO: "virtualservices", OLD_ISTIO: "virtualservices"}
AT_GATEWAY = at_gateway("infra/public")


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AksScenario:
    """A cluster in memory that nobody waits for, with no Gateway yet."""
    without_waiting(monkeypatch)
    monkeypatch.setattr(ingress, "_ACCEPTANCE_TIMEOUT", 0.1)
    return AksScenario(tmp_path)


@pytest.fixture(params=[GATEWAY_API, ISTIO, OLD_ISTIO])
def api(request: pytest.FixtureRequest, scenario: AksScenario) -> str:
    """The version of a group that the cluster serves, with a Gateway of it."""
    scenario.gateway(str(request.param), "infra/public")
    return str(request.param)


def route(scenario: AksScenario) -> Any:
    """The route that is there, of whichever kind."""
    return scenario.object("httproutes") or scenario.object("virtualservices")


def weights(body: Any) -> dict[str, int]:
    """The weight of each Service that a route leads to."""
    if body["kind"] == "HTTPRoute":
        return {one["name"]: one["weight"] for one in body["spec"]["rules"][0]["backendRefs"]}
    return {one["destination"]["host"]: one["weight"] for one in body["spec"]["http"][0]["route"]}


class TestSchemas:
    """What is rendered is what Gateway API and Istio define."""

    @pytest.mark.parametrize("percent", [0, 1, 10, 50, 99])
    def test_every_route_is_valid_and_its_weights_sum_to_100(
        self, scenario: AksScenario, api: str, percent: int
    ) -> None:
        """Without a canary, and with any share."""
        body = rendered(scenario, "infra/public", percent)
        assert (body["apiVersion"], violations(body)) == (api, [])
        assert weights(body) == {NAME: 100 - percent, f"{NAME}-canary": percent}

    @pytest.mark.parametrize("served", [ISTIO, OLD_ISTIO])
    def test_a_route_of_the_mesh_is_valid(self, scenario: AksScenario, served: str) -> None:
        """It needs no Gateway."""
        scenario.api.served.add(served)
        body = rendered(scenario, "mesh", 10)
        assert (violations(body), body["spec"]["gateways"]) == ([], ["mesh"])

    def test_a_wrong_route_is_not_valid(self, scenario: AksScenario, api: str) -> None:
        """A weight that is text, a field that nobody knows, a missing one: the check would see each."""
        good = rendered(scenario, "infra/public", 10)
        for change in (weight_as_text, unknown_field, host_as_number):
            wrong = copy.deepcopy(good)
            change(wrong)
            assert len(violations(wrong)) == 1, change


def rendered(scenario: AksScenario, gateway: str, percent: int) -> Any:
    """The route as it is applied."""
    settings = scenario.settings(**at_gateway(gateway))
    return with_weights(Exposure(scenario.api.cluster(), settings).manifests()[-1], NAME, percent)


def entries(body: Any) -> Any:
    """What holds the weights."""
    spec = body["spec"]
    return spec["rules"][0]["backendRefs"] if "rules" in spec else spec["http"][0]["route"]


def weight_as_text(body: Any) -> None:
    """As it would be if a value in a manifest lost its type."""
    entries(body)[0]["weight"] = "90"


def unknown_field(body: Any) -> None:
    """A slip of the pen, which a server would drop in silence."""
    entries(body)[0]["wieght"] = entries(body)[0].pop("weight")


def host_as_number(body: Any) -> None:
    """A host that is no text."""
    body["spec"]["hostnames" if "rules" in body["spec"] else "hosts"] = [1]


class TestWhichKind:
    """Decided by what the cluster serves, and where a Gateway of that name is."""

    def test_gateway_api_comes_first(self, scenario: AksScenario) -> None:
        """Where both know a Gateway of that name."""
        scenario.gateway(ISTIO, "infra/public")
        scenario.gateway(GATEWAY_API, "infra/public")
        assert kind(scenario) == "HTTPRoute"

    def test_istio_where_gateway_api_knows_no_such_gateway(self, scenario: AksScenario) -> None:
        """That Gateway API is installed is not enough."""
        scenario.gateway(ISTIO, "infra/public")
        scenario.gateway(GATEWAY_API, "infra/another")
        assert kind(scenario) == "VirtualService"

    def test_a_lookup_that_is_refused_is_passed_over_when_the_other_finds_it(self, scenario: AksScenario) -> None:
        """A role may have the rights on one kind only."""
        scenario.gateway(ISTIO, "infra/public")
        scenario.api.served.add(GATEWAY_API)
        scenario.api.refused[f"{GATEWAY_API}/namespaces"] = 403
        assert kind(scenario) == "VirtualService"

    def test_a_lookup_that_is_refused_is_told_when_no_other_finds_it(self, scenario: AksScenario) -> None:
        """Nobody is told that a Gateway is missing which he may not see."""
        scenario.api.served |= {GATEWAY_API, ISTIO}
        scenario.api.refused[f"{GATEWAY_API}/namespaces"] = 403
        with pytest.raises(UnavailableError, match=r"(?s)403.*docs/aks.md"):
            kind(scenario)

    def test_a_gateway_that_is_not_there(self, scenario: AksScenario) -> None:
        """What was looked for, where, and what to do."""
        scenario.gateway(GATEWAY_API, "infra/another")
        with pytest.raises(ConfigurationError, match=r"(?s)AKS_GATEWAY=infra/public.*gateway\.networking.*kubectl get"):
            scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        assert scenario.object("services") is None

    @pytest.mark.parametrize("gateway", ["infra/public", "mesh"])
    def test_a_cluster_that_serves_neither(self, scenario: AksScenario, gateway: str) -> None:
        """An Ingress and pods would do."""
        with pytest.raises(ConfigurationError, match=r"(?s)serves none of.*istio.*unset AKS_GATEWAY"):
            kind(scenario, gateway)

    def test_doctor_says_what_is_missing(self, scenario: AksScenario) -> None:
        """In a finding of its own, beside the others."""
        findings = {finding.subject: finding for finding in scenario.target(**AT_GATEWAY).diagnose()}
        assert {subject: finding.ok for subject, finding in findings.items()} == {
            "cluster": True,
            "rights": True,
            "weights": False,
        }


def kind(scenario: AksScenario, gateway: str = "infra/public") -> str:
    """Of the route that would be made."""
    found = Exposure(scenario.api.cluster(), scenario.settings(**at_gateway(gateway))).route
    assert found is not None
    return found.kind


class TestSettings:
    """AKS_GATEWAY is a name, and needs a host."""

    def test_it_needs_a_host(self, scenario: AksScenario) -> None:
        """A route without one would take every request of the Gateway."""
        with pytest.raises(ConfigurationError, match=r"(?s)AKS_GATEWAY: needs a host.*set AKS_HOST"):
            scenario.settings(AKS_GATEWAY="infra/public")

    @pytest.mark.parametrize("value", ["a/b/c", "../x", "Public", "a b", "/x", "x/"])
    def test_what_names_no_gateway_is_refused(self, scenario: AksScenario, value: str) -> None:
        """It becomes part of a path."""
        with pytest.raises(ConfigurationError, match="expected NAMESPACE/NAME, NAME or mesh"):
            scenario.settings(**at_gateway(value))

    @pytest.mark.parametrize(
        ("value", "expected"), [("infra/public", "infra/public"), ("public", "models/public"), ("mesh", "mesh")]
    )
    def test_a_name_alone_is_of_our_namespace(self, scenario: AksScenario, value: str, expected: str) -> None:
        """``mesh`` is no name."""
        assert scenario.settings(**at_gateway(value), AKS_NAMESPACE="models").aks.gateway == expected

    @pytest.mark.parametrize(
        ("gateway", "expected"), [("infra/public", "https://model.example.com"), ("mesh", "http://model.example.com")]
    )
    def test_the_address_is_the_host(self, scenario: AksScenario, gateway: str, expected: str) -> None:
        """A Gateway ends TLS; a sidecar shares out plain requests only, and encrypts them itself."""
        scenario.gateway(ISTIO, "infra/public")
        assert scenario.deploy(scenario.release("1"), **at_gateway(gateway)).url == expected


class TestDeployment:
    """What stands on the cluster without a canary."""

    def test_all_goes_to_the_version_that_serves(self, scenario: AksScenario, api: str) -> None:
        """A route in place of the Ingress; the Services tell the tracks apart, so that weights alone are the share."""
        scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        assert weights(route(scenario)) == {NAME: 100, f"{NAME}-canary": 0}
        assert scenario.object("ingresses") is None
        selectors = [scenario.object("services", name)["spec"]["selector"] for name in (NAME, f"{NAME}-canary")]
        assert [selector["mlops/track"] for selector in selectors] == ["stable", "canary"]

    def test_the_same_again_is_no_change(self, scenario: AksScenario, api: str) -> None:
        """The plan is empty."""
        release = scenario.release("1")
        scenario.deploy(release, **AT_GATEWAY)
        assert scenario.steps(release, **AT_GATEWAY) == []

    def test_undeploy_leaves_nothing(self, scenario: AksScenario, api: str) -> None:
        """Also when the Gateway is gone by then, and whatever the settings say."""
        scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        gateway = (f"gateways.{api.partition('/')[0]}", "infra/public")
        del scenario.api.objects[gateway]
        scenario.target().undeploy(print)
        assert scenario.api.objects == {}


class TestSwitch:
    """Turning AKS_GATEWAY on or off removes what the other way in was made of, if it is ours."""

    def test_on_the_ingress_goes(self, scenario: AksScenario, api: str) -> None:
        """The plan says so."""
        release = scenario.release("1")
        scenario.deploy(release, AKS_HOST="model.example.com")
        expected = [
            ("change", f"Service {NAME}"),
            ("create", f"Service {NAME}-canary"),
            ("create", f"{'HTTPRoute' if api == GATEWAY_API else 'VirtualService'} {NAME}"),
            ("delete", f"Ingress {NAME}: AKS_GATEWAY is set"),
        ]
        assert scenario.steps(release, **AT_GATEWAY) == expected
        scenario.deploy(release, **AT_GATEWAY)
        assert (scenario.object("ingresses"), scenario.steps(release, **AT_GATEWAY)) == (None, [])

    def test_on_the_ingress_stays_until_the_route_is_taken(self, scenario: AksScenario) -> None:
        """No way in would be worse than the old one."""
        scenario.gateway(GATEWAY_API, "infra/public")
        scenario.api.accepts = None
        release = scenario.release("1")
        scenario.deploy(release, AKS_HOST="model.example.com")
        with pytest.raises(UnhealthyError, match="no controller has answered"):
            scenario.deploy(release, **AT_GATEWAY)
        assert scenario.object("ingresses") is not None

    def test_off_the_route_goes(self, scenario: AksScenario, api: str) -> None:
        """And the Service of the candidate; the other one leads to all pods again."""
        release = scenario.release("1")
        scenario.deploy(release, **AT_GATEWAY)
        scenario.deploy(release, AKS_HOST="model.example.com")
        assert (route(scenario), scenario.object("services", f"{NAME}-canary")) == (None, None)
        assert scenario.object("ingresses") is not None
        assert "mlops/track" not in scenario.object("services")["spec"]["selector"]
        assert scenario.steps(release, AKS_HOST="model.example.com") == []

    def test_to_a_gateway_of_the_other_kind_the_old_route_goes(self, scenario: AksScenario) -> None:
        """Both would take the same host."""
        scenario.gateway(GATEWAY_API, "infra/public")
        scenario.gateway(ISTIO, "infra/istio")
        release = scenario.release("1")
        scenario.deploy(release, **AT_GATEWAY)
        step = ("delete", f"HTTPRoute {NAME}: the Gateway has another kind of routes")
        assert step in scenario.steps(release, **at_gateway("infra/istio"))
        scenario.deploy(release, **at_gateway("infra/istio"))
        assert (scenario.object("httproutes"), scenario.object("virtualservices")["kind"]) == (None, "VirtualService")

    def test_what_somebody_else_made_stays(self, scenario: AksScenario, api: str) -> None:
        """Its name alone makes it not ours, and without AKS_GATEWAY it is not even looked at."""
        theirs = {"name": NAME, "labels": {}, "generation": 1}
        scenario.api.objects[(PLURALS[api], NAME)] = {"metadata": theirs, "spec": {"parentRefs": [{}]}}
        scenario.api.refused[PLURALS[api]] = 403
        scenario.deploy(scenario.release("1"))
        scenario.target().undeploy(print)
        assert (PLURALS[api], NAME) in scenario.api.objects


class TestCanary:
    """Exactly the share that was asked for, set when the candidate is there and taken back before it goes."""

    def test_the_share_is_exact(self, scenario: AksScenario, api: str) -> None:
        """One pod for 3 % of two; the autoscaler goes on."""
        scenario.deploy(scenario.release("1"), AKS_MIN_REPLICAS="2", **AT_GATEWAY)
        status = scenario.deploy(scenario.release("2"), canary=3, AKS_MIN_REPLICAS="2", **AT_GATEWAY)
        assert status.state == "serving; canary: toy version 2 gets 3.0 % of the traffic"
        assert weights(route(scenario)) == {NAME: 97, f"{NAME}-canary": 3}
        assert (len(scenario.api.pods("stable")), len(scenario.api.pods("canary"))) == (2, 1)
        scaler = scenario.object("horizontalpodautoscalers")["spec"]
        assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 10)
        assert violations({name: value for name, value in route(scenario).items() if name != "status"}) == []

    def test_the_plan_names_the_route(self, scenario: AksScenario) -> None:
        """Nothing is said of scaling the version that serves."""
        scenario.gateway(GATEWAY_API, "infra/public")
        scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        plan = scenario.target(**AT_GATEWAY).plan(scenario.release("2"), canary_percent=10)
        last = plan.steps[-1]
        goes = "10.0 % of the traffic goes to toy version 2"
        assert (last.action, last.subject) == ("change", f"HTTPRoute ({GATEWAY_API}) at Gateway infra/public: {goes}")

    @pytest.mark.parametrize(
        ("percent", "stable", "most", "expected"),
        [(10, 1, 10, 1), (10, 30, 100, 3), (11, 30, 100, 4), (99, 8, 10, 2), (50, 1, 1, 1), (50, 12, 10, 1)],
    )
    def test_pods_follow_the_share_and_fit(self, percent: int, stable: int, most: int, expected: int) -> None:
        """One at least, rounded up, and no more than AKS_MAX_REPLICAS has left."""
        aks = AksSettings(max_replicas=most)
        assert canary.weighted(percent, stable, aks) == Share(stable, expected, weight=percent)

    @pytest.mark.parametrize("percent", [0, 100])
    def test_what_is_no_share_is_refused(self, percent: int) -> None:
        """A canary leaves both versions some traffic."""
        with pytest.raises(UsageError, match="from 1 to 99"):
            canary.weighted(percent, 1, AksSettings())

    @pytest.mark.parametrize("end", ["rollback", "promote"])
    def test_weights_come_after_the_pods_and_go_before_them(
        self, scenario: AksScenario, api: str, end: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So no request is sent where nobody answers; the setting may be another by then."""
        monkeypatch.setattr(canary_metrics, "judge", lambda *_: None)
        scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        scenario.api.writes.clear()
        scenario.deploy(scenario.release("2"), canary=10, **AT_GATEWAY)
        changed = ("PATCH", f"{PLURALS[api]}/{NAME}")
        pods = ("PATCH", f"deployments/{NAME}-canary")
        order = [write for write in scenario.api.writes if write in (changed, pods)]
        assert order == [pods, changed, pods]
        scenario.api.writes.clear()
        if end == "promote":
            scenario.target().promote(print)
        else:
            scenario.target().rollback(no_verification, print)
        assert weights(route(scenario)) == {NAME: 100, f"{NAME}-canary": 0}
        removed = scenario.api.writes.index(("DELETE", f"deployments/{NAME}-canary"))
        assert scenario.api.writes.index(changed) < removed
        assert scenario.serving()[0] == ("2" if end == "promote" else "1")

    @pytest.mark.parametrize(
        ("accepts", "why"), [(False, "NotAllowedByListeners"), (None, "no controller has answered")]
    )
    def test_a_route_that_no_controller_takes_ends_it(
        self, scenario: AksScenario, accepts: bool | None, why: str
    ) -> None:
        """A share that nobody sends would be a lie."""
        scenario.gateway(GATEWAY_API, "infra/public")
        scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        scenario.api.accepts = accepts
        with pytest.raises(UnhealthyError, match=why):
            scenario.deploy(scenario.release("2"), canary=10, **AT_GATEWAY)
        assert weights(route(scenario)) == {NAME: 100, f"{NAME}-canary": 0}
        assert (scenario.api.pods("canary"), scenario.state()) == ([], "serving")

    def test_a_candidate_that_is_not_led_to_gets_no_share(
        self, scenario: AksScenario, api: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its Service is asked first."""
        scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        monkeypatch.setattr(ingress, "_ENDPOINTS_TIMEOUT", 0.0)
        generation = route(scenario)["metadata"]["generation"]
        with pytest.raises(UnhealthyError, match=f"Service {NAME}-canary: does not lead"):
            scenario.deploy(scenario.release("2"), canary=10, **AT_GATEWAY)
        assert route(scenario)["metadata"]["generation"] == generation

    def test_one_that_was_killed_at_its_start_is_ended_in_order(self, scenario: AksScenario, api: str) -> None:
        """By the next deployment: its weights go before its pods."""
        scenario.deploy(scenario.release("1"), **AT_GATEWAY)
        scenario.deploy(scenario.release("2"), canary=10, **AT_GATEWAY)
        del scenario.object("deployments", f"{NAME}-canary")["metadata"]["annotations"][canary.READY]
        scenario.api.writes.clear()
        assert scenario.deploy(scenario.release("3"), **AT_GATEWAY).state == "serving"
        changes = [path for _, path in scenario.api.writes]
        assert changes.index(f"{PLURALS[api]}/{NAME}") < changes.index(f"deployments/{NAME}-canary")
        assert weights(route(scenario)) == {NAME: 100, f"{NAME}-canary": 0}

    def test_a_canary_by_pods_ends_without_a_route(self, scenario: AksScenario, api: str) -> None:
        """AKS_GATEWAY was set while it ran: its end makes nothing; the next deployment does."""
        scenario.deploy(scenario.release("1"), AKS_HOST="model.example.com")
        scenario.deploy(scenario.release("2"), canary=50, AKS_HOST="model.example.com")
        scenario.target(**AT_GATEWAY).rollback(no_verification, print)
        assert (route(scenario), scenario.api.pods("canary")) == (None, [])


class TestAnswer:
    """What a controller says to a route, in its status."""

    def test_only_what_is_about_this_generation_counts(self) -> None:
        """The answer to the route before says nothing."""
        assert acceptance(answered("True", generation=1), 2, "infra/public")[0] is None
        assert acceptance(answered("True", generation=2), 2, "infra/public") == (True, "")

    def test_another_gateway_does_not_count(self) -> None:
        """Of another name or namespace."""
        assert acceptance(answered("True"), 2, "infra/another")[0] is None
        assert acceptance(answered("True"), 2, "another/public")[0] is None

    def test_what_does_not_resolve_is_waited_for(self) -> None:
        """A controller may not have seen the Service yet; the reason is told when it never does."""
        body = answered("True")
        not_found = {"status": "False", "reason": "BackendNotFound", "message": "no such Service"}
        body["status"]["parents"][0]["conditions"].append(
            {"type": "ResolvedRefs", "observedGeneration": 2, **not_found}
        )
        is_taken, why = acceptance(body, 2, "infra/public")
        assert (is_taken, "BackendNotFound: no such Service" in why) == (None, True)


def answered(status: str, generation: int = 2) -> Any:
    """A route with one controller's answer about that generation."""
    said = {"type": "Accepted", "status": status, "observedGeneration": generation, "reason": "Said", "message": ""}
    parent = {"parentRef": {"name": "public", "namespace": "infra"}, "conditions": [said]}
    return {"metadata": {"namespace": "default"}, "status": {"parents": [parent]}}
