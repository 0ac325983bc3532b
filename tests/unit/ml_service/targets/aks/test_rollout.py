"""The aks target against a Kubernetes API in memory: what its plans, its status and its rollouts say and do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ml_service.errors import ConfigurationError, UnavailableError, UnhealthyError, UsageError
from ml_service.targets.aks import canary, lease, permissions
from tests.support.aks_scenario import NAME, ROOT, AksScenario, at_gateway, killed_in_its_rollout, without_waiting
from tests.support.releases import no_verification

pytest.importorskip("kubernetes")


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AksScenario:
    """A cluster in memory that nobody waits for."""
    without_waiting(monkeypatch)
    return AksScenario(tmp_path)


class TestPodsThatCount:
    """Only pods of the newest template decide a rollout, and one that is ready is never a reason to give it up."""

    def test_a_pod_that_once_restarted_blocks_no_canary(self, scenario: AksScenario) -> None:
        """A process that ended last week says nothing about the pod that is ready now."""
        scenario.deploy(scenario.release("1"))
        restarted(scenario.api.pods("stable")[0])
        status = scenario.deploy(scenario.release("2"), canary=25)
        assert "version 2 gets 25.0 %" in status.state

    def test_a_broken_pod_of_the_same_package_blocks_no_deployment(self, scenario: AksScenario) -> None:
        """It had too little memory: the same package with more of it comes up beside it."""
        release = scenario.release("1")
        scenario.deploy(release)
        old = scenario.api.pods("stable")[0]
        restarted(old)
        old["status"]["conditions"][0]["status"] = "Unknown"
        assert scenario.deploy(release, AKS_MEMORY_GB="1").state == "serving"
        assert old not in scenario.api.pods("stable")

    def test_a_new_pod_whose_process_ended_is_trouble(self, scenario: AksScenario) -> None:
        """The rollout is given up at once, not at the end of its time."""
        scenario.deploy(scenario.release("1"))
        scenario.api.broken.add("toy:2")
        scenario.api.restarts.add("toy:2")
        with pytest.raises(UnhealthyError, match="ended with code 137"):
            scenario.deploy(scenario.release("2"), AKS_STARTUP_TIMEOUT="60")


def restarted(pod: Any) -> None:
    """As a pod looks whose process was killed once and runs again."""
    pod["status"]["containerStatuses"][0].update(
        restartCount=1, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    )


class TestHalfDone:
    """What a killed deployment or a hand left half done is told, planned and ended; never reported as done."""

    def test_a_rollout_that_was_killed_is_no_success(self, scenario: AksScenario) -> None:
        """Status says how far it came, and deploying the same again waits for it."""
        scenario.deploy(scenario.release("1"))
        second = killed_in_its_rollout(scenario, "2")
        assert scenario.state() == "rolling out: 0 of 1 pods hold toy version 2"
        assert scenario.target().plan(second).steps[0].diff == "0 of 1 pods hold toy version 2"
        assert scenario.steps(second) == [("restore", "Deployment toy: all pods are to hold toy version 2")]
        scenario.api.broken.clear()
        assert scenario.deploy(second).state == "serving"
        assert scenario.steps(second) == []

    def test_half_a_rollout_that_cannot_be_ended_is_taken_back(self, scenario: AksScenario) -> None:
        """As the killed deployment would have done it: the version whose pods still serve is the one written down."""
        scenario.deploy(scenario.release("1"), AKS_STARTUP_TIMEOUT="1")
        second = killed_in_its_rollout(scenario, "2", AKS_STARTUP_TIMEOUT="1")
        with pytest.raises(UnhealthyError, match="toy version 2 did not come up"):
            scenario.deploy(second, AKS_STARTUP_TIMEOUT="1")
        assert scenario.serving() == ("1", None)

    def test_what_never_served_is_not_what_a_rollback_brings_back(self, scenario: AksScenario) -> None:
        """The next version's ``previous`` is the one whose pods served."""
        scenario.deploy(scenario.release("1"))
        killed_in_its_rollout(scenario, "2")
        scenario.deploy(scenario.release("3"))
        assert scenario.serving() == ("3", "1")

    def test_the_version_that_still_serves_is_deployed_again(self, scenario: AksScenario) -> None:
        """It is not its own predecessor."""
        first = scenario.release("1")
        scenario.deploy(first)
        killed_in_its_rollout(scenario, "2")
        scenario.deploy(first)
        assert scenario.serving() == ("1", None)

    def test_a_deployment_scaled_to_nothing_comes_back(self, scenario: AksScenario) -> None:
        """The autoscaler leaves it at no pods, so the deployment brings back the least number."""
        release = scenario.release("1")
        scenario.deploy(release, AKS_MIN_REPLICAS="2")
        scenario.api.cluster().scale(NAME, 0)
        assert scenario.state().startswith("down")
        expected = [("restore", "Deployment toy: all pods are to hold toy version 1")]
        assert scenario.steps(release, AKS_MIN_REPLICAS="2") == expected
        steps = scenario.target(AKS_MIN_REPLICAS="2").plan(release).steps
        assert [step.diff for step in steps] == ["0 of 2 pods hold toy version 1"]
        scenario.deploy(release, AKS_MIN_REPLICAS="2")
        assert (scenario.state(), len(scenario.api.pods("stable"))) == ("serving", 2)


class TestNoMoreThanPlanned:
    """``apply`` performs exactly the plan's steps."""

    def test_a_new_host_replaces_no_pod(self, scenario: AksScenario) -> None:
        """The plan is an Ingress and a Service; the pods stay, and no candidate is started."""
        release = scenario.release("1")
        scenario.deploy(release)
        pods = scenario.api.pods("stable")
        scenario.api.writes.clear()
        assert [action for action, _ in scenario.steps(release, AKS_HOST="model.example.com")] == ["create"]
        scenario.deploy(release, AKS_HOST="model.example.com")
        assert scenario.api.pods("stable") == pods
        assert not [path for _, path in scenario.api.writes if path.startswith("deployments")]

    def test_a_plan_that_another_deployment_overtook_is_refused(self, scenario: AksScenario) -> None:
        """Nobody is told that his version serves when another one does."""
        first = scenario.release("1")
        scenario.deploy(first)
        target = scenario.target(AKS_HOST="model.example.com")
        plan = target.plan(first)
        scenario.deploy(scenario.release("2"))
        with pytest.raises(UnavailableError, match="since this one was planned"):
            target.apply(plan, no_verification, print)


class TestCanary:
    """A canary counts from the moment at which its share is reached."""

    def test_a_canary_that_was_killed_at_its_start_blocks_nothing(self, scenario: AksScenario) -> None:
        """Status quotes no share, promote has nothing, and the next deployment removes it and serves."""
        scenario.deploy(scenario.release("1"))
        scenario.deploy(scenario.release("2"), canary=50)
        del scenario.object("deployments", "toy-canary")["metadata"]["annotations"][canary.READY]
        assert scenario.state() == (
            "serving; a canary of toy version 2 starts, or was killed: the next deployment removes it"
        )
        with pytest.raises(UsageError, match="no canary to promote"):
            scenario.target().promote(print)
        third = scenario.release("3")
        assert scenario.steps(third)[0] == ("delete", "Deployment toy-canary: a canary that never began")
        assert scenario.deploy(third).state == "serving"
        assert scenario.serving() == ("3", "1")
        assert scenario.api.pods("canary") == []

    def test_a_running_canary_still_blocks(self, scenario: AksScenario) -> None:
        """It has to be ended first, one way or the other."""
        scenario.deploy(scenario.release("1"))
        scenario.deploy(scenario.release("2"), canary=50)
        with pytest.raises(UsageError, match="a canary is running"):
            scenario.steps(scenario.release("3"))

    def test_a_candidate_that_crashed_is_not_promoted(self, scenario: AksScenario) -> None:
        """A crash answers nobody and is counted nowhere, so restarts are looked at, before all figures."""
        scenario.deploy(scenario.release("1"))
        scenario.deploy(scenario.release("2"), canary=50)
        restarted(scenario.api.pods("canary")[0])
        with pytest.raises(UnhealthyError, match=r"restarts: 1"):
            scenario.target().promote(print)
        assert scenario.serving() == ("1", None)


class TestIngress:
    """The way in by a host goes when the host does, whatever the settings of the task that removes it."""

    def test_a_deployment_without_host_plans_to_remove_it(self, scenario: AksScenario) -> None:
        """A route that nobody configured any more is not left open."""
        release = scenario.release("1")
        scenario.deploy(release, AKS_HOST="model.example.com")
        assert scenario.steps(release) == [("delete", "Ingress toy: AKS_HOST is not set")]
        scenario.deploy(release)
        assert scenario.object("ingresses") is None
        assert scenario.steps(release) == []

    def test_undeploy_removes_it_without_knowing_the_host(self, scenario: AksScenario) -> None:
        """Nothing of the deployment is left."""
        scenario.deploy(scenario.release("1"), AKS_HOST="model.example.com")
        scenario.target().undeploy(print)
        assert scenario.api.objects == {}

    def test_an_ingress_of_somebody_else_stays(self, scenario: AksScenario) -> None:
        """Its name alone makes it not ours."""
        scenario.deploy(scenario.release("1"))
        scenario.api.objects[("ingresses", NAME)] = {"metadata": {"name": NAME, "labels": {}}}
        scenario.target().undeploy(print)
        assert list(scenario.api.objects) == [("ingresses", NAME)]


class TestNewestVersions:
    """Today's clusters serve what the old one in the tests does not."""

    @pytest.fixture
    def scenario(self, tmp_path: Path) -> AksScenario:
        return AksScenario(tmp_path, "autoscaling/v2", "policy/v1", "policy/v1beta1")

    def test_the_autoscaler_aims_at_the_utilization_by_autoscaling_v2(self, scenario: AksScenario) -> None:
        """Numbers are numbers, and no field of the version before is left."""
        scenario.deploy(scenario.release("1"), AKS_MIN_REPLICAS="2", AKS_MAX_REPLICAS="7", AKS_TARGET_UTILIZATION="55")
        found = scenario.object("horizontalpodautoscalers")
        assert found["apiVersion"] == "autoscaling/v2"
        target = {"type": "Utilization", "averageUtilization": 55}
        assert found["spec"] == {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "minReplicas": 2,
            "maxReplicas": 7,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }

    def test_a_drained_node_takes_one_pod_at_a_time_by_policy_v1(self, scenario: AksScenario) -> None:
        """The newest one that is served is used, and it selects the pods that serve."""
        scenario.deploy(scenario.release("1"))
        found = scenario.object("poddisruptionbudgets")
        assert found["apiVersion"] == "policy/v1"
        selected = {"app.kubernetes.io/name": NAME, "mlops/serves": "yes"}
        assert found["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": selected}}
        assert selected.items() <= scenario.api.pods("stable")[0]["metadata"]["labels"].items()


class TestLogs:
    """The last lines of the service, not of one pod."""

    def test_lines_of_all_pods_are_merged_by_time(self, scenario: AksScenario) -> None:
        """Times have fractions of any length; each line tells its pod and not its time."""
        scenario.deploy(scenario.release("1"), AKS_MIN_REPLICAS="2")
        one, two = (pod["metadata"]["name"] for pod in scenario.api.pods("stable"))
        scenario.api.logs = {
            one: "2026-01-01T00:00:01.1Z first\n2026-01-01T00:00:03Z third\n",
            two: "2026-01-01T00:00:01.12Z second\n2026-01-01T00:00:04.000000001Z fourth line\n",
        }
        assert scenario.target().logs(3) == [f"{two} second", f"{one} third", f"{two} fourth line"]

    def test_no_right_to_read_them_is_said(self, scenario: AksScenario) -> None:
        """No lines would look like pods that say nothing."""
        scenario.deploy(scenario.release("1"))
        scenario.api.refused["/log"] = 403
        with pytest.raises(UnavailableError, match=r"(?s)refused.*docs/aks\.md"):
            scenario.target().logs(10)

    def test_a_pod_that_has_not_started_has_none(self, scenario: AksScenario) -> None:
        """That is no failure, and neither is a pod that is gone by now."""
        scenario.deploy(scenario.release("1"))
        for status in (400, 404):
            scenario.api.refused["/log"] = status
            assert scenario.target().logs(10) == []

    def test_a_failure_is_told_without_the_right_to_read_logs(self, scenario: AksScenario) -> None:
        """The message of the rollout is not replaced by the one about the logs."""
        scenario.api.broken.add("toy:1")
        scenario.api.refused["/log"] = 403
        with pytest.raises(UnhealthyError, match=r"(?s)did not come up.*its log cannot be read"):
            scenario.deploy(scenario.release("1"), AKS_STARTUP_TIMEOUT="1")


class TestEndOfAPod:
    """A pod that is replaced ends what it works on."""

    @pytest.mark.parametrize(
        ("variables", "drain", "termination"),
        [
            ({}, "31", 39),
            ({"AKS_SCORING_TIMEOUT_MS": "60000"}, "61", 69),
            ({"AKS_SCORING_TIMEOUT_MS": "1500"}, "9", 17),
            ({"SCORING_TIMEOUT": "45.5"}, "46.5", 55),
            ({"SCORING_DRAIN_TIMEOUT": "60"}, "60", 68),
        ],
    )
    def test_it_has_the_whole_scoring_timeout(
        self, scenario: AksScenario, variables: dict[str, str], drain: str, termination: int
    ) -> None:
        """The server is told, and the cluster waits for it: routers' second, the drain, and 7 seconds to spare."""
        scenario.deploy(scenario.release("1"), canary=None, **variables)
        spec = scenario.object("deployments")["spec"]["template"]["spec"]
        environment = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
        assert environment["SCORING_DRAIN_TIMEOUT"] == drain
        assert spec["terminationGracePeriodSeconds"] == termination

    def test_so_many_may_wait_for_the_model_as_the_setting_says(self, scenario: AksScenario) -> None:
        """More get 503 at once; without it the server's own default holds."""
        release = scenario.release("1")
        for given, expected in (("0", None), ("7", "7")):
            scenario.deploy(release, AKS_MAX_CONCURRENT_REQUESTS=given)
            spec = scenario.object("deployments")["spec"]["template"]["spec"]
            environment = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
            assert environment.get("SCORING_MAX_QUEUE") == expected

    def test_what_is_no_number_is_said_before_a_pod_says_it(self, scenario: AksScenario) -> None:
        """It names the setting."""
        refusal = "SCORING_TIMEOUT: invalid value 'soon': expected a number from 0.01 to 3600"
        with pytest.raises(ConfigurationError, match=refusal):
            scenario.steps(scenario.release("1"), SCORING_TIMEOUT="soon")


class TestWithoutKeys:
    """A server that answers without a key is asked without one."""

    @pytest.mark.parametrize("word", ["off", "OFF", "Off"])
    def test_the_endpoint_has_no_key(self, scenario: AksScenario, word: str) -> None:
        """The word is read from the version that serves, whatever the task's own environment says."""
        scenario.deploy(scenario.release("1"), SCORING_AUTH=word)
        assert scenario.target().endpoint().key == ""

    def test_it_has_one_otherwise(self, scenario: AksScenario) -> None:
        """Also when the task's own environment turns keys off."""
        scenario.deploy(scenario.release("1"))
        assert scenario.target(SCORING_AUTH="off").endpoint().key == scenario.target().keys().primary


class TestRights:
    """What doctor checks is what the guide lists, and what a deployment calls."""

    def test_doctor_names_each_right_that_is_missing(self, scenario: AksScenario) -> None:
        """Also one that is needed only when something goes wrong."""
        scenario.api.denied.add("pods/log")
        findings = {finding.subject: finding for finding in scenario.target().diagnose()}
        assert (findings["rights"].ok, findings["rights"].detail) == (False, "missing: get pods/log")

    def test_doctor_names_a_missing_right_on_routes(self, scenario: AksScenario) -> None:
        """And says which kind of weights a canary would have."""
        scenario.api.denied.add("httproutes")
        findings = {finding.subject: finding for finding in scenario.target(**at_gateway("infra/public")).diagnose()}
        missing = "missing: get httproutes, create httproutes, patch httproutes, delete httproutes"
        weights = "HTTPRoute (gateway.networking.k8s.io/v1) at Gateway infra/public"
        assert (findings["rights"].detail, findings["weights"].detail) == (missing, weights)

    @pytest.fixture
    def scenario(self, scenario: AksScenario) -> AksScenario:
        """It has a Gateway of each kind."""
        scenario.gateway("gateway.networking.k8s.io/v1", "infra/public")
        scenario.gateway("networking.istio.io/v1", "infra/istio")
        return scenario

    def test_the_guide_lists_what_doctor_checks(self, scenario: AksScenario) -> None:
        """A role made by the guide is enough for doctor, and no more than it asks for, at a Gateway of either kind."""
        for variables in ({}, at_gateway("infra/public"), at_gateway("infra/istio")):
            scenario.target(**variables).diagnose()
        asked: dict[tuple[str, str], list[str]] = {}
        for verb, group, resource in dict.fromkeys(scenario.api.asked):
            asked.setdefault((group or "core", resource), []).append(verb)
        text = (ROOT / "docs" / "aks.md").read_text(encoding="utf-8").partition("## Rights")[2].partition("\n## ")[0]
        rows = [[cell.replace("`", "").strip() for cell in row.split("|")[1:4]] for row in text.splitlines()]
        listed = {(row[0], row[1]): row[2].split(", ") for row in rows if len(row) == 3}
        assert {key: verbs for key, verbs in listed.items() if key[0] not in ("group", "---")} == asked

    def test_rights_on_routes_are_asked_for_only_with_a_gateway(self, scenario: AksScenario) -> None:
        """That a cluster knows such kinds is no reason."""
        scenario.target().diagnose()
        groups = {group for _, group, _ in scenario.api.asked}
        assert groups & {"gateway.networking.k8s.io", "networking.istio.io"} == set()

    @pytest.mark.parametrize(
        ("gateway", "route"), [("", ""), ("infra/public", "HTTPRoute"), ("infra/istio", "VirtualService")]
    )
    def test_no_call_needs_a_right_that_is_not_listed(self, scenario: AksScenario, gateway: str, route: str) -> None:
        """A whole life: deployment, canary and its end, rollback, logs, removal."""
        variables = at_gateway(gateway)
        others = {"infra/public": "virtualservices", "infra/istio": "httproutes"}
        if gateway:
            scenario.api.refused[others[gateway]] = 403
        if route == "VirtualService":
            scenario.api.refused["gateway.networking.k8s.io/v1/namespaces/infra/gateways"] = 403
        scenario.deploy(scenario.release("1"), **variables)
        second = scenario.release("2")
        scenario.deploy(second, canary=50, **variables)
        scenario.target(**variables).rollback(no_verification, print)
        scenario.deploy(second, **variables)
        scenario.target(**variables).rollback(no_verification, print)
        scenario.target(**variables).logs(10)
        scenario.target(**variables).undeploy(print)
        listed = (*permissions.RIGHTS, *permissions.ROUTE_RIGHTS.get(route, ()))
        assert scenario.api.called - {(verb, resource) for _, resource, verbs in listed for verb in verbs} == set()


class TestLease:
    """Two deployments never work side by side, not even when one of them slept."""

    def test_a_holder_that_slept_changes_nothing_any_more(self, scenario: AksScenario) -> None:
        """Its renewals were lost and another took the lease: each change is refused, and the lease is left alone."""
        cluster = scenario.api.cluster()
        with lease.held(cluster, "toy-deployment", print, duration=1):
            cluster.delete("v1", "Service", NAME)
            scenario.api.refused["leases"] = 503
            time.sleep(1.2)
            scenario.api.refused.clear()
            scenario.object("leases", "toy-deployment")["spec"]["holderIdentity"] = "another"
            for _ in range(2):
                with pytest.raises(UnavailableError, match="another one took over: another"):
                    cluster.delete("v1", "Service", NAME)
            cluster.get("v1", "Service", NAME)
        assert scenario.object("leases", "toy-deployment")["spec"]["holderIdentity"] == "another"

    def test_a_lost_renewal_alone_stops_nobody(self, scenario: AksScenario) -> None:
        """While nobody else has it, the lease is taken up again before the next change."""
        cluster = scenario.api.cluster()
        with lease.held(cluster, "toy-deployment", print, duration=1):
            scenario.api.refused["leases"] = 503
            time.sleep(1.2)
            with pytest.raises(UnavailableError, match="503"):
                cluster.delete("v1", "Service", NAME)
            scenario.api.refused.clear()
            cluster.delete("v1", "Service", NAME)
        assert scenario.object("leases", "toy-deployment") is None
