"""The contract of the Target port (ml_service/ports.py), held against every rig of ``tests.support.rigs``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from ml_service.errors import MlopsError, UnavailableError, UnhealthyError, UsageError
from ml_service.ports import Endpoint, Release, Target
from tests.support.releases import (
    FIRST_REQUEST,
    MakeRelease,
    deploy,
    no_verification,
    release_maker,
    smoke_test,
    version_at,
)
from tests.support.rigs import TARGET_RIGS, TargetRig, rig_params
from tests.support.traffic import Traffic


@pytest.fixture(params=rig_params(TARGET_RIGS))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TargetRig]:
    rig = TARGET_RIGS[request.param](tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def target(rig: TargetRig) -> Target:
    return rig.target


@pytest.fixture
def release(tmp_path: Path, rig: TargetRig) -> MakeRelease:
    return release_maker(rig, tmp_path)


def serving_version(target: Target) -> str:
    return version_at(target.endpoint())


def model_versions(target: Target) -> tuple[str, str | None]:
    status = target.status()
    assert status is not None
    return status.model["version"], status.previous["version"] if status.previous else None


class TestPlan:
    """1. ``plan`` looks and changes nothing; ``apply`` performs exactly the plan's steps."""

    def test_planning_changes_nothing(self, target: Target, release: MakeRelease) -> None:
        """A plan has steps in words, and nothing is deployed by it."""
        plan = target.plan(release("1"))
        assert plan.steps and all(step.action and step.subject for step in plan.steps)
        assert target.status() is None

    def test_what_already_serves_is_planned_as_no_step(self, target: Target, release: MakeRelease) -> None:
        """A second deployment of the same package does nothing, and questions nothing."""
        first = release("1")
        deploy(target, first)
        before = target.status()
        plan = target.plan(first)
        assert list(plan.steps) == []
        asked: list[Endpoint] = []
        assert target.apply(plan, lambda endpoint, package: asked.append(endpoint), print) == before
        assert asked == []

    def test_a_share_of_traffic_is_refused_where_there_is_no_canary(self, target: Target, release: MakeRelease) -> None:
        """Nobody believes to have deployed a canary that is none."""
        with pytest.raises(UsageError, match="canary"):
            target.plan(release("1"), canary_percent=10)


class TestApply:
    """2. The candidate comes up beside what serves, is questioned, and only then gets the traffic; 3. or is removed."""

    def test_a_first_deployment_serves(self, target: Target, release: MakeRelease) -> None:
        """Status tells what was deployed, and the endpoint passes the package's smoke test."""
        first = release("1")
        status = target.apply(target.plan(first), no_verification, print)
        assert (status.target, status.model) == (target.name, {"name": "toy", "version": "1"})
        assert (status.package_sha256, status.build_id) == (first.package_sha256, "build-1")
        assert (status.previous, status.state) == (None, "serving")
        smoke_test(target.endpoint(), first)

    def test_the_version_before_serves_while_the_candidate_is_questioned(
        self, target: Target, release: MakeRelease
    ) -> None:
        """``verify`` sees the candidate alone; the public endpoint still answers with the version before."""
        deploy(target, release("1"))
        second = release("2")
        seen: list[str] = []

        def verify(endpoint: Endpoint, package: Path | None) -> None:
            smoke_test(endpoint, second)
            seen.append(serving_version(target))

        target.apply(target.plan(second), verify, print)
        assert [*seen, serving_version(target)] == ["1", "2"]
        assert model_versions(target) == ("2", "1")

    @pytest.mark.parametrize("fault", ["crash", "wrong"])
    def test_a_bad_candidate_is_removed(self, target: Target, release: MakeRelease, fault: str) -> None:
        """It did not come up, or answered wrongly: UnhealthyError with its last lines; the version before serves."""
        deploy(target, release("1"))
        before = target.status()
        with pytest.raises(UnhealthyError, match="starting.*version"):
            deploy(target, release("2", fault=fault))
        assert target.status() == before
        assert serving_version(target) == "1"

    def test_a_bad_first_candidate_leaves_nothing(self, target: Target, release: MakeRelease) -> None:
        """Nothing served before, so nothing serves after, and a good one can follow."""
        with pytest.raises(UnhealthyError):
            deploy(target, release("1", fault="crash"))
        assert target.status() is None
        deploy(target, release("2"))
        assert serving_version(target) == "2"

    def test_an_interrupt_removes_the_candidate(self, target: Target, release: MakeRelease) -> None:
        """Ctrl-C stays Ctrl-C, and the version before still serves."""
        deploy(target, release("1"))
        before = target.status()

        def interrupt(endpoint: Endpoint, package: Path | None) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            target.apply(target.plan(release("2")), interrupt, print)
        assert target.status() == before
        assert serving_version(target) == "1"

    def test_no_request_is_lost_while_versions_change(self, rig: TargetRig, release: MakeRelease) -> None:
        """Under load, with keep-alive and without, every request that was sent gets its answer, also by rollback."""
        first, second = release("1"), release("2")
        target, follow = rig.under_load()
        deploy(target, first)
        with Traffic(target.endpoint(), FIRST_REQUEST, clients=rig.clients, follow=follow) as traffic:
            for number, next_release in enumerate([second, first, second], start=1):
                deploy(target, next_release)
                traffic.wait_for(number * 100)
            target.rollback(no_verification, print)
            traffic.wait_for(traffic.answered + 100)
        assert traffic.lost == []
        assert set(traffic.versions) == {"1", "2"}


class TestConcurrency:
    """4. Two deployments at once: the result is always one of them, whole."""

    def test_two_deployments_at_once(self, rig: TargetRig, release: MakeRelease) -> None:
        """One waits or is refused; what serves is what status says, and the loser is at most ``previous``."""
        releases = [release("1"), release("2")]
        errors: list[MlopsError] = []

        def run(chosen: Release) -> None:
            try:
                deploy(rig.open(), chosen)
            except MlopsError as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(chosen,)) for chosen in releases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] in ([], [UnavailableError])
        current, previous = model_versions(rig.target)
        assert serving_version(rig.target) == current
        assert {current, previous} in ({"1", "2"}, {"1", None}, {"2", None})


class TestRollback:
    """5. ``rollback`` moves back to ``previous``; there is no canary to promote."""

    def test_rollback_brings_back_the_version_before(self, rig: TargetRig, release: MakeRelease) -> None:
        """Within a minute it serves again, questioned like any candidate; what was left is not ``previous``."""
        first, second = release("1"), release("2")
        deploy(rig.target, first)
        deploy(rig.target, second)
        began = time.monotonic()
        status = rig.open().rollback(lambda endpoint, package: smoke_test(endpoint, first), print)
        assert time.monotonic() - began < 60
        assert (status.model["version"], status.previous, status.package_sha256) == ("1", None, first.package_sha256)
        assert serving_version(rig.target) == "1"

    def test_a_rollback_that_fails_leaves_what_serves(self, target: Target, release: MakeRelease) -> None:
        """The version to go back to is no better: UnhealthyError, and a second try is possible."""
        deploy(target, release("1"))
        deploy(target, release("2"))
        before = target.status()

        def refuse(endpoint: Endpoint, package: Path | None) -> None:
            raise UnhealthyError("not today")

        with pytest.raises(UnhealthyError, match="not today"):
            target.rollback(refuse, print)
        assert target.status() == before
        assert serving_version(target) == "2"

    def test_nothing_to_go_back_to(self, target: Target, release: MakeRelease) -> None:
        """Without a deployment, after the first one, and after a rollback."""
        with pytest.raises(UsageError):
            target.rollback(no_verification, print)
        deploy(target, release("1"))
        with pytest.raises(UsageError):
            target.rollback(no_verification, print)

    def test_nothing_to_promote(self, target: Target, release: MakeRelease) -> None:
        """A target without canaries says so."""
        deploy(target, release("1"))
        with pytest.raises(UsageError, match="canary"):
            target.promote(print)


class TestUndeploy:
    """6. ``undeploy`` removes everything but the logs and is idempotent."""

    def test_undeploy_ends_the_service(self, rig: TargetRig, release: MakeRelease) -> None:
        """Nothing answers, nothing is deployed, and a second time is no error; the next deployment starts afresh."""
        deploy(rig.target, release("1"))
        url = rig.target.endpoint().url
        rig.target.undeploy(print)
        rig.open().undeploy(print)
        assert rig.target.status() is None
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/health/live", timeout=30)
        deploy(rig.target, release("2"))
        assert model_versions(rig.target) == ("2", None)

    def test_undeploy_of_nothing(self, target: Target) -> None:
        """It is idempotent from the start."""
        target.undeploy(print)
        assert target.status() is None


class TestKeysAndLogs:
    """7. ``logs`` are the last lines and hold no key; ``keys`` and ``endpoint`` need a deployment."""

    def test_nothing_deployed_has_no_endpoint_and_no_keys(self, target: Target) -> None:
        """Both say so."""
        with pytest.raises(UsageError, match="nothing is deployed"):
            target.endpoint()
        with pytest.raises(UsageError, match="nothing is deployed"):
            target.keys()

    def test_either_key_opens_and_outlives_a_deployment(self, target: Target, release: MakeRelease) -> None:
        """Clients need no new key for a new version; without a key nothing is answered."""
        deploy(target, release("1"))
        keys = target.keys()
        deploy(target, release("2"))
        assert target.keys() == keys
        statuses = [
            requests.post(
                f"{target.endpoint().url}/score",
                json=FIRST_REQUEST,
                headers={"Authorization": f"Bearer {key}"},
                timeout=30,
            ).status_code
            for key in (keys.primary, keys.secondary, "guess")
        ]
        assert statuses == [200, 200, 401]
        assert keys.primary not in repr(keys) and keys.primary not in repr(target.endpoint())

    def test_the_last_lines_come_oldest_first(self, target: Target, release: MakeRelease) -> None:
        """Fewer lines are the end of more lines, and a key is in none of them."""
        deploy(target, release("1", fault="tells"))
        deploy(target, release("2"))
        lines = list(target.logs(1000))
        assert list(target.logs(2)) == lines[-2:]
        assert list(target.logs(0)) == []
        assert any("1" in line for line in lines)
        keys = target.keys()
        assert not [line for line in lines if keys.primary in line or keys.secondary in line]

    def test_diagnose_finds_nothing_wrong(self, target: Target, release: MakeRelease) -> None:
        """On a machine where everything works, before a deployment and after one."""
        assert all(finding.ok for finding in target.diagnose())
        deploy(target, release("1"))
        assert all(finding.ok for finding in target.diagnose())
