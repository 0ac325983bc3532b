"""The plan is what runs: each write on the cluster belongs to a step, and a plan of before is performed or refused."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ml_service.errors import UnavailableError
from ml_service.ports import Action, Plan, Release
from ml_service.targets.aks import canary_metrics, lease
from ml_service.targets.aks.client import _PLURALS
from ml_service.targets.aks.deployment import read_version
from tests.support.aks_scenario import NAME, AksScenario, at_gateway, killed_in_its_rollout, without_waiting
from tests.support.releases import no_verification

pytest.importorskip("kubernetes")

GATEWAY_API = "gateway.networking.k8s.io/v1"
HOST: dict[str, Any] = {"AKS_HOST": "model.example.com"}


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AksScenario:
    """A cluster in memory, with a Gateway, whose proxies and controllers follow at once."""
    without_waiting(monkeypatch)
    made = AksScenario(tmp_path)
    made.gateway(GATEWAY_API, "infra/public")
    return made


def planned_writes(plan: Plan) -> set[str]:
    """Return the objects that the steps name, as PLURAL/NAME. A stable version that is pinned stops its autoscaler."""
    subjects = [step.subject for step in plan.steps if step.action in (Action.CREATE, Action.CHANGE, Action.DELETE)]
    scaled = [f"HorizontalPodAutoscaler {NAME}" for step in plan.steps if step.action is Action.SCALE]
    return {path_of(*re.split("[ :,]", subject)[:2]) for subject in (*subjects, *scaled)}


def path_of(kind: str, name: str) -> str:
    """Return what the cluster in memory notes; the name is not in the path of what is created by POST."""
    return "secrets" if kind == "Secret" else f"{_PLURALS[kind]}/{NAME if name.startswith('(') else name}"


def performed_writes(scenario: AksScenario) -> set[str]:
    """Return the objects that were written, but for the lease, the candidate's pod and numbers of pods."""
    paths = {path for _, path in scenario.api.writes if not path.startswith("leases") and not path.endswith("/scale")}
    return paths - {f"deployments/{NAME}-candidate"}


class TestEachWriteIsAStep:
    """Whatever differs: the steps name it, and nothing else is written."""

    def check(self, scenario: AksScenario, release: Release, *, canary: int | None = None, **variables: str) -> None:
        """Deploy, and compare the writes with the plan."""
        target = scenario.target(**variables)
        plan = target.plan(release, canary_percent=canary)
        scenario.api.writes.clear()
        target.apply(plan, no_verification, print)
        assert performed_writes(scenario) == planned_writes(plan)
        if canary is None:
            assert scenario.target(**variables).plan(release).steps == []

    def test_of_a_first_deployment(self, scenario: AksScenario) -> None:
        """Everything is created, the keys included."""
        self.check(scenario, scenario.release("1"))

    def test_of_another_version(self, scenario: AksScenario) -> None:
        """The Deployment alone."""
        scenario.deploy(scenario.release("1"))
        self.check(scenario, scenario.release("2"))

    def test_of_other_settings(self, scenario: AksScenario) -> None:
        """An Ingress and the autoscaler; the Deployment stays."""
        release = scenario.release("1")
        scenario.deploy(release)
        self.check(scenario, release, AKS_MAX_REPLICAS="7", **HOST)

    def test_of_another_way_in(self, scenario: AksScenario) -> None:
        """A route in the place of an Ingress."""
        scenario.deploy(scenario.release("1"), **HOST)
        self.check(scenario, scenario.release("2"), **at_gateway("infra/public"))

    @pytest.mark.parametrize("gateway", ["", "infra/public"])
    def test_of_a_canary(self, scenario: AksScenario, gateway: str) -> None:
        """By pods the autoscaler is stopped, by weights the route is changed."""
        scenario.deploy(scenario.release("1"), **at_gateway(gateway))
        self.check(scenario, scenario.release("2"), canary=50, **at_gateway(gateway))

    def test_of_a_canary_under_other_settings(self, scenario: AksScenario) -> None:
        """What else differs is planned, too, before the candidate starts."""
        scenario.deploy(scenario.release("1"))
        second = scenario.release("2")
        plan = scenario.target(**HOST).plan(second, canary_percent=50)
        assert [(step.action, step.subject) for step in plan.steps] == [
            ("create", f"Ingress {NAME}"),
            ("start", "toy version 2 in a pod of its own, which serves nobody"),
            ("verify", "toy version 2 in that pod"),
            ("scale", "toy version 1 to 1 pods"),
            ("create", f"Deployment {NAME}-canary: 1 pods, so 50.0 % of the traffic goes to toy version 2"),
        ]
        self.check(scenario, second, canary=50, **HOST)


class TestTimeBetweenPlanAndApply:
    """A cluster changes by itself, which is no reason to refuse a plan; what another deployment did is one."""

    def test_a_rollout_that_has_ended_meanwhile_leaves_the_other_steps(self, scenario: AksScenario) -> None:
        """The pods of a killed deployment got ready after all: the Ingress is still created."""
        scenario.deploy(scenario.release("1"))
        second = killed_in_its_rollout(scenario, "2")
        target = scenario.target(**HOST)
        plan = target.plan(second)
        assert [step.action for step in plan.steps] == ["create", "restore"]
        scenario.api.broken.clear()
        while scenario.state() != "serving":
            pass
        assert target.apply(plan, no_verification, print).state == "serving"
        assert (scenario.object("ingresses")["kind"], scenario.serving()) == ("Ingress", ("2", "1"))

    def test_a_number_of_pods_that_has_changed_meanwhile_is_no_other_plan(self, scenario: AksScenario) -> None:
        """What is restored is said in the step, how much of it is only shown."""
        release = scenario.release("1")
        scenario.deploy(release, AKS_MIN_REPLICAS="2")
        scenario.api.cluster().scale(NAME, 0)
        target = scenario.target(AKS_MIN_REPLICAS="2")
        plan = target.plan(release)
        assert [step.diff for step in plan.steps] == ["0 of 2 pods hold toy version 1"]
        scenario.api.cluster().scale(NAME, 1)
        assert target.apply(plan, no_verification, print).state == "serving"
        assert len(scenario.api.pods("stable")) == 2

    def test_a_plan_that_somebody_else_has_carried_out_changes_nothing(self, scenario: AksScenario) -> None:
        """Two pipelines deployed the same: one of them has nothing left to do, and says so."""
        scenario.deploy(scenario.release("1"))
        second = scenario.release("2")
        target, lines = scenario.target(), list[str]()
        plan = target.plan(second)
        scenario.deploy(second)
        scenario.api.writes.clear()
        target.apply(plan, no_verification, lines.append)
        assert performed_writes(scenario) == set()
        assert "nothing is left to change: what was planned has been done meanwhile" in lines

    def test_a_first_deployment_that_another_overtook_is_refused(self, scenario: AksScenario) -> None:
        """It would create a Deployment that is there by now, with another version."""
        target, first = scenario.target(), scenario.release("1")
        plan = target.plan(first)
        scenario.deploy(scenario.release("2"))
        with pytest.raises(UnavailableError, match="since this one was planned"):
            target.apply(plan, no_verification, print)
        assert scenario.serving() == ("2", None)


class TestDeployedByCommit33c8506:
    """What an older version of these tasks deployed is taken over as it is."""

    @pytest.fixture
    def scenario(self, scenario: AksScenario) -> AksScenario:
        """Version 2 serves, version 1 did before, and version 3 is a canary, all applied by that commit."""
        cluster, path = scenario.api.cluster(), Path(__file__).with_name("applied_by_33c8506.yaml")
        for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            cluster.apply(body, force=True)
        keys = base64.b64encode(b'{"primary": "one", "secondary": "two"}').decode()
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{NAME}-keys"}, "data": {"keys.json": keys}}
        cluster.create(body)
        for _ in range(10):
            scenario.target().status()
        return scenario

    def test_its_state_is_read(self, scenario: AksScenario) -> None:
        """Versions, the canary and the keys."""
        assert scenario.serving() == ("2", "1")
        assert scenario.state() == "serving; canary: toy version 3 gets 50.0 % of the traffic"
        assert scenario.target().keys().primary == "one"

    def test_the_same_release_is_no_change(self, scenario: AksScenario) -> None:
        """Not one field of one object differs."""
        scenario.target().rollback(no_verification, print)
        recorded = read_version(scenario.object("deployments"))
        assert recorded is not None
        release = replace(scenario.release("2"), package_sha256=recorded.package_sha256)
        assert scenario.steps(release) == []

    def test_its_canary_is_promoted(self, scenario: AksScenario, monkeypatch: pytest.MonkeyPatch) -> None:
        """The version that served is what a rollback brings back."""
        monkeypatch.setattr(canary_metrics, "judge", lambda *_: None)
        scenario.target().promote(print)
        assert (scenario.serving(), scenario.state()) == (("3", "2"), "serving")

    def test_it_is_rolled_back(self, scenario: AksScenario) -> None:
        """First its canary ends, then the version before comes back."""
        for _ in range(2):
            scenario.target().rollback(no_verification, print)
        assert (scenario.serving(), scenario.state()) == (("1", None), "serving")


class TestPackages:
    """The packages below MLOPS_HOME belong to whoever holds the lease."""

    def test_a_candidate_is_verified_also_after_another_deployment_removed_its_package(
        self, scenario: AksScenario, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other one ends while this one waits for the lease. Without the package there would be no examples."""
        hold = lease.held

        @contextmanager
        def held_after_another(*arguments: Any, **options: Any) -> Iterator[Any]:
            shutil.rmtree(scenario.settings().home / "targets", ignore_errors=True)
            with hold(*arguments, **options) as held:
                yield held

        verified: list[Path | None] = []
        target = scenario.target()
        plan = target.plan(scenario.release("1"))
        monkeypatch.setattr(lease, "held", held_after_another)
        target.apply(plan, lambda endpoint, package: verified.append(package), print)
        assert [package and package.name for package in verified] == [plan.release.package_sha256]
