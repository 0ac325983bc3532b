"""The aks target against a Kubernetes API in memory: what its plans, its status and its rollouts say and do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ml_service.errors import ConfigurationError, UnavailableError, UnhealthyError, UsageError
from ml_service.ports import Release
from ml_service.targets.aks import canary, lease, permissions
from ml_service.targets.aks.deployment import STABLE, Version, deployment, read_version
from tests.support.aks_scenario import NAME, ROOT, World, at_gateway, without_waiting
from tests.support.deployments import no_question

pytest.importorskip("kubernetes")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster in memory that nobody waits for."""
    without_waiting(monkeypatch)
    return World(tmp_path)


class TestPodsThatCount:
    """Only pods of the newest template decide a rollout, and one that is ready is never a reason to give it up."""

    def test_a_pod_that_once_restarted_blocks_no_canary(self, world: World) -> None:
        """A process that ended last week says nothing about the pod that is ready now."""
        world.deploy(world.release("1"))
        restarted(world.api.pods("stable")[0])
        status = world.deploy(world.release("2"), canary=25)
        assert "version 2 gets 25.0 %" in status.state

    def test_a_broken_pod_of_the_same_package_blocks_no_deployment(self, world: World) -> None:
        """It had too little memory: the same package with more of it comes up beside it."""
        release = world.release("1")
        world.deploy(release)
        old = world.api.pods("stable")[0]
        restarted(old)
        old["status"]["conditions"][0]["status"] = "Unknown"
        assert world.deploy(release, AKS_MEMORY_GB="1").state == "serving"
        assert old not in world.api.pods("stable")

    def test_a_new_pod_whose_process_ended_is_trouble(self, world: World) -> None:
        """The rollout is given up at once, not at the end of its time."""
        world.deploy(world.release("1"))
        world.api.broken.add("toy:2")
        world.api.restarts.add("toy:2")
        with pytest.raises(UnhealthyError, match="ended with code 137"):
            world.deploy(world.release("2"), AKS_STARTUP_TIMEOUT="60")


def restarted(pod: Any) -> None:
    """As a pod looks whose process was killed once and runs again."""
    pod["status"]["containerStatuses"][0].update(
        restartCount=1, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    )


def killed_in_its_rollout(world: World, version: str, **variables: str) -> Release:
    """Deploy a version whose pods do not get ready, and be killed meanwhile: nobody goes back."""
    release = world.release(version)
    world.api.broken.add(f"toy:{version}")
    settings, before = world.settings(**variables), read_version(world.object("deployments"))
    body = deployment(settings, Version.of(release, settings), STABLE, before)
    world.api.cluster().apply(body)
    return release


class TestHalfDone:
    """What a killed deployment or a hand left half done is told, planned and ended; never reported as done."""

    def test_a_rollout_that_was_killed_is_no_success(self, world: World) -> None:
        """Status says how far it came, and deploying the same again waits for it."""
        world.deploy(world.release("1"))
        second = killed_in_its_rollout(world, "2")
        assert world.state() == "rolling out: 0 of 1 pods hold toy version 2"
        assert world.steps(second) == [("restore", "Deployment toy: 0 of 1 pods hold toy version 2")]
        world.api.broken.clear()
        assert world.deploy(second).state == "serving"
        assert world.steps(second) == []

    def test_half_a_rollout_that_cannot_be_ended_is_taken_back(self, world: World) -> None:
        """As the killed deployment would have done it: the version whose pods still serve is the one written down."""
        world.deploy(world.release("1"), AKS_STARTUP_TIMEOUT="1")
        second = killed_in_its_rollout(world, "2", AKS_STARTUP_TIMEOUT="1")
        with pytest.raises(UnhealthyError, match="toy version 2 did not come up"):
            world.deploy(second, AKS_STARTUP_TIMEOUT="1")
        assert world.serving() == ("1", None)

    def test_what_never_served_is_not_what_a_rollback_brings_back(self, world: World) -> None:
        """The next version's ``previous`` is the one whose pods served."""
        world.deploy(world.release("1"))
        killed_in_its_rollout(world, "2")
        world.deploy(world.release("3"))
        assert world.serving() == ("3", "1")

    def test_the_version_that_still_serves_is_deployed_again(self, world: World) -> None:
        """It is not its own predecessor."""
        first = world.release("1")
        world.deploy(first)
        killed_in_its_rollout(world, "2")
        world.deploy(first)
        assert world.serving() == ("1", None)

    def test_a_deployment_scaled_to_nothing_comes_back(self, world: World) -> None:
        """The autoscaler leaves it at no pods, so the deployment brings back the least number."""
        release = world.release("1")
        world.deploy(release, AKS_MIN_REPLICAS="2")
        world.api.cluster().scale(NAME, 0)
        assert world.state().startswith("down")
        expected = [("restore", "Deployment toy: 0 of 2 pods hold toy version 1")]
        assert world.steps(release, AKS_MIN_REPLICAS="2") == expected
        world.deploy(release, AKS_MIN_REPLICAS="2")
        assert (world.state(), len(world.api.pods("stable"))) == ("serving", 2)


class TestNoMoreThanPlanned:
    """``apply`` performs exactly the plan's steps."""

    def test_a_new_host_replaces_no_pod(self, world: World) -> None:
        """The plan is an Ingress and a Service; the pods stay, and no candidate is started."""
        release = world.release("1")
        world.deploy(release)
        pods = world.api.pods("stable")
        world.api.writes.clear()
        assert [action for action, _ in world.steps(release, AKS_HOST="model.example.com")] == ["create"]
        world.deploy(release, AKS_HOST="model.example.com")
        assert world.api.pods("stable") == pods
        assert not [path for _, path in world.api.writes if path.startswith("deployments")]

    def test_a_plan_that_another_deployment_overtook_is_refused(self, world: World) -> None:
        """Nobody is told that his version serves when another one does."""
        first = world.release("1")
        world.deploy(first)
        target = world.target(AKS_HOST="model.example.com")
        plan = target.plan(first)
        world.deploy(world.release("2"))
        with pytest.raises(UnavailableError, match="since this one was planned"):
            target.apply(plan, no_question, print)


class TestCanary:
    """A canary counts from the moment at which its share is reached."""

    def test_a_canary_that_was_killed_at_its_start_blocks_nothing(self, world: World) -> None:
        """Status quotes no share, promote has nothing, and the next deployment removes it and serves."""
        world.deploy(world.release("1"))
        world.deploy(world.release("2"), canary=50)
        del world.object("deployments", "toy-canary")["metadata"]["annotations"][canary.READY]
        assert world.state() == (
            "serving; a canary of toy version 2 starts, or was killed: the next deployment removes it"
        )
        with pytest.raises(UsageError, match="no canary to promote"):
            world.target().promote(print)
        third = world.release("3")
        assert world.steps(third)[0] == ("delete", "Deployment toy-canary: a canary that never began")
        assert world.deploy(third).state == "serving"
        assert world.serving() == ("3", "1")
        assert world.api.pods("canary") == []

    def test_a_running_canary_still_blocks(self, world: World) -> None:
        """It has to be ended first, one way or the other."""
        world.deploy(world.release("1"))
        world.deploy(world.release("2"), canary=50)
        with pytest.raises(UsageError, match="a canary is running"):
            world.steps(world.release("3"))

    def test_a_candidate_that_crashed_is_not_promoted(self, world: World) -> None:
        """A crash answers nobody and is counted nowhere, so restarts are looked at, before all figures."""
        world.deploy(world.release("1"))
        world.deploy(world.release("2"), canary=50)
        restarted(world.api.pods("canary")[0])
        with pytest.raises(UnhealthyError, match=r"restarts: 1"):
            world.target().promote(print)
        assert world.serving() == ("1", None)


class TestIngress:
    """The way in by a host goes when the host does, whatever the settings of the task that removes it."""

    def test_a_deployment_without_host_plans_to_remove_it(self, world: World) -> None:
        """A route that nobody configured any more is not left open."""
        release = world.release("1")
        world.deploy(release, AKS_HOST="model.example.com")
        assert world.steps(release) == [("delete", "Ingress toy: AKS_HOST is not set")]
        world.deploy(release)
        assert world.object("ingresses") is None
        assert world.steps(release) == []

    def test_undeploy_removes_it_without_knowing_the_host(self, world: World) -> None:
        """Nothing of the deployment is left."""
        world.deploy(world.release("1"), AKS_HOST="model.example.com")
        world.target().undeploy(print)
        assert world.api.objects == {}

    def test_an_ingress_of_somebody_else_stays(self, world: World) -> None:
        """Its name alone makes it not ours."""
        world.deploy(world.release("1"))
        world.api.objects[("ingresses", NAME)] = {"metadata": {"name": NAME, "labels": {}}}
        world.target().undeploy(print)
        assert list(world.api.objects) == [("ingresses", NAME)]


class TestNewestVersions:
    """Today's clusters serve what the old one in the tests does not."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return World(tmp_path, "autoscaling/v2", "policy/v1", "policy/v1beta1")

    def test_the_autoscaler_aims_at_the_utilization_by_autoscaling_v2(self, world: World) -> None:
        """Numbers are numbers, and no field of the version before is left."""
        world.deploy(world.release("1"), AKS_MIN_REPLICAS="2", AKS_MAX_REPLICAS="7", AKS_TARGET_UTILIZATION="55")
        found = world.object("horizontalpodautoscalers")
        assert found["apiVersion"] == "autoscaling/v2"
        target = {"type": "Utilization", "averageUtilization": 55}
        assert found["spec"] == {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "minReplicas": 2,
            "maxReplicas": 7,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }

    def test_a_drained_node_takes_one_pod_at_a_time_by_policy_v1(self, world: World) -> None:
        """The newest one that is served is used, and it selects the pods that serve."""
        world.deploy(world.release("1"))
        found = world.object("poddisruptionbudgets")
        assert found["apiVersion"] == "policy/v1"
        selected = {"app.kubernetes.io/name": NAME, "mlops/serves": "yes"}
        assert found["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": selected}}
        assert selected.items() <= world.api.pods("stable")[0]["metadata"]["labels"].items()


class TestLogs:
    """The last lines of the service, not of one pod."""

    def test_lines_of_all_pods_are_merged_by_time(self, world: World) -> None:
        """Times have fractions of any length; each line tells its pod and not its time."""
        world.deploy(world.release("1"), AKS_MIN_REPLICAS="2")
        one, two = (pod["metadata"]["name"] for pod in world.api.pods("stable"))
        world.api.logs = {
            one: "2026-01-01T00:00:01.1Z first\n2026-01-01T00:00:03Z third\n",
            two: "2026-01-01T00:00:01.12Z second\n2026-01-01T00:00:04.000000001Z fourth line\n",
        }
        assert world.target().logs(3) == [f"{two} second", f"{one} third", f"{two} fourth line"]

    def test_no_right_to_read_them_is_said(self, world: World) -> None:
        """No lines would look like pods that say nothing."""
        world.deploy(world.release("1"))
        world.api.refused["/log"] = 403
        with pytest.raises(UnavailableError, match=r"(?s)refused.*docs/aks\.md"):
            world.target().logs(10)

    def test_a_pod_that_has_not_started_has_none(self, world: World) -> None:
        """That is no failure, and neither is a pod that is gone by now."""
        world.deploy(world.release("1"))
        for status in (400, 404):
            world.api.refused["/log"] = status
            assert world.target().logs(10) == []

    def test_a_failure_is_told_without_the_right_to_read_logs(self, world: World) -> None:
        """The message of the rollout is not replaced by the one about the logs."""
        world.api.broken.add("toy:1")
        world.api.refused["/log"] = 403
        with pytest.raises(UnhealthyError, match=r"(?s)did not come up.*its log cannot be read"):
            world.deploy(world.release("1"), AKS_STARTUP_TIMEOUT="1")


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
        self, world: World, variables: dict[str, str], drain: str, termination: int
    ) -> None:
        """The server is told, and the cluster waits for it: routers' second, the drain, and 7 seconds to spare."""
        world.deploy(world.release("1"), canary=None, **variables)
        spec = world.object("deployments")["spec"]["template"]["spec"]
        environment = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
        assert environment["SCORING_DRAIN_TIMEOUT"] == drain
        assert spec["terminationGracePeriodSeconds"] == termination

    def test_so_many_may_wait_for_the_model_as_the_setting_says(self, world: World) -> None:
        """More get 503 at once; without it the server's own default holds."""
        release = world.release("1")
        for given, expected in (("0", None), ("7", "7")):
            world.deploy(release, AKS_MAX_CONCURRENT_REQUESTS=given)
            spec = world.object("deployments")["spec"]["template"]["spec"]
            environment = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
            assert environment.get("SCORING_MAX_QUEUE") == expected

    def test_what_is_no_number_is_said_before_a_pod_says_it(self, world: World) -> None:
        """It names the setting."""
        refusal = "SCORING_TIMEOUT: invalid value 'soon': expected a number from 0.01 to 3600"
        with pytest.raises(ConfigurationError, match=refusal):
            world.steps(world.release("1"), SCORING_TIMEOUT="soon")


class TestWithoutKeys:
    """A server that answers without a key is asked without one."""

    @pytest.mark.parametrize("word", ["off", "OFF", "Off"])
    def test_the_endpoint_has_no_key(self, world: World, word: str) -> None:
        """The word is read from the version that serves, whatever the task's own environment says."""
        world.deploy(world.release("1"), SCORING_AUTH=word)
        assert world.target().endpoint().key == ""

    def test_it_has_one_otherwise(self, world: World) -> None:
        """Also when the task's own environment turns keys off."""
        world.deploy(world.release("1"))
        assert world.target(SCORING_AUTH="off").endpoint().key == world.target().keys().primary


class TestRights:
    """What doctor checks is what the guide lists, and what a deployment calls."""

    def test_doctor_names_each_right_that_is_missing(self, world: World) -> None:
        """Also one that is needed only when something goes wrong."""
        world.api.denied.add("pods/log")
        findings = {finding.subject: finding for finding in world.target().diagnose()}
        assert (findings["rights"].ok, findings["rights"].detail) == (False, "missing: get pods/log")

    def test_doctor_names_a_missing_right_on_routes(self, world: World) -> None:
        """And says which kind of weights a canary would have."""
        world.api.denied.add("httproutes")
        findings = {finding.subject: finding for finding in world.target(**at_gateway("infra/public")).diagnose()}
        missing = "missing: get httproutes, create httproutes, patch httproutes, delete httproutes"
        weights = "HTTPRoute (gateway.networking.k8s.io/v1) at Gateway infra/public"
        assert (findings["rights"].detail, findings["weights"].detail) == (missing, weights)

    @pytest.fixture
    def world(self, world: World) -> World:
        """It has a Gateway of each kind."""
        world.gateway("gateway.networking.k8s.io/v1", "infra/public")
        world.gateway("networking.istio.io/v1", "infra/istio")
        return world

    def test_the_guide_lists_what_doctor_checks(self, world: World) -> None:
        """A role made by the guide is enough for doctor, and no more than it asks for, at a Gateway of either kind."""
        for variables in ({}, at_gateway("infra/public"), at_gateway("infra/istio")):
            world.target(**variables).diagnose()
        asked: dict[tuple[str, str], list[str]] = {}
        for verb, group, resource in dict.fromkeys(world.api.asked):
            asked.setdefault((group or "core", resource), []).append(verb)
        text = (ROOT / "docs" / "aks.md").read_text(encoding="utf-8").partition("## Rights")[2].partition("\n## ")[0]
        rows = [[cell.replace("`", "").strip() for cell in row.split("|")[1:4]] for row in text.splitlines()]
        listed = {(row[0], row[1]): row[2].split(", ") for row in rows if len(row) == 3}
        assert {key: verbs for key, verbs in listed.items() if key[0] not in ("group", "---")} == asked

    def test_rights_on_routes_are_asked_for_only_with_a_gateway(self, world: World) -> None:
        """That a cluster knows such kinds is no reason."""
        world.target().diagnose()
        groups = {group for _, group, _ in world.api.asked}
        assert groups & {"gateway.networking.k8s.io", "networking.istio.io"} == set()

    @pytest.mark.parametrize(
        ("gateway", "route"), [("", ""), ("infra/public", "HTTPRoute"), ("infra/istio", "VirtualService")]
    )
    def test_no_call_needs_a_right_that_is_not_listed(self, world: World, gateway: str, route: str) -> None:
        """A whole life: deployment, canary and its end, rollback, logs, removal."""
        variables = at_gateway(gateway)
        others = {"infra/public": "virtualservices", "infra/istio": "httproutes"}
        if gateway:
            world.api.refused[others[gateway]] = 403
        if route == "VirtualService":
            world.api.refused["gateway.networking.k8s.io/v1/namespaces/infra/gateways"] = 403
        world.deploy(world.release("1"), **variables)
        second = world.release("2")
        world.deploy(second, canary=50, **variables)
        world.target(**variables).rollback(no_question, print)
        world.deploy(second, **variables)
        world.target(**variables).rollback(no_question, print)
        world.target(**variables).logs(10)
        world.target(**variables).undeploy(print)
        listed = (*permissions.RIGHTS, *permissions.ROUTE_RIGHTS.get(route, ()))
        assert world.api.called - {(verb, resource) for _, resource, verbs in listed for verb in verbs} == set()


class TestLease:
    """Two deployments never work side by side, not even when one of them slept."""

    def test_a_holder_that_slept_changes_nothing_any_more(self, world: World) -> None:
        """Its renewals were lost and another took the lease: each change is refused, and the lease is left alone."""
        cluster = world.api.cluster()
        with lease.held(cluster, "toy-deployment", print, duration=1):
            cluster.delete("v1", "Service", NAME)
            world.api.refused["leases"] = 503
            time.sleep(1.2)
            world.api.refused.clear()
            world.object("leases", "toy-deployment")["spec"]["holderIdentity"] = "another"
            for _ in range(2):
                with pytest.raises(UnavailableError, match="another one took over: another"):
                    cluster.delete("v1", "Service", NAME)
            cluster.get("v1", "Service", NAME)
        assert world.object("leases", "toy-deployment")["spec"]["holderIdentity"] == "another"

    def test_a_lost_renewal_alone_stops_nobody(self, world: World) -> None:
        """While nobody else has it, the lease is taken up again before the next change."""
        cluster = world.api.cluster()
        with lease.held(cluster, "toy-deployment", print, duration=1):
            world.api.refused["leases"] = 503
            time.sleep(1.2)
            with pytest.raises(UnavailableError, match="503"):
                cluster.delete("v1", "Service", NAME)
            world.api.refused.clear()
            cluster.delete("v1", "Service", NAME)
        assert world.object("leases", "toy-deployment") is None
