"""The aks target on a real cluster: what it makes there, bad luck, canaries, and load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from ml_service.errors import UnavailableError, UnhealthyError, UsageError
from ml_service.ports import Endpoint, Release
from ml_service.targets.aks.target import AksTarget
from tests.support.ports import free_port
from tests.support.releases import EXAMPLES, deploy, make_real_release, make_release, smoke_test, version_at
from tests.support.rigs.aks import AksRig
from tests.support.services import cluster_or_skip
from tests.support.settings import settings_for
from tests.support.sources import ROOT
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kubernetes, pytest.mark.filterwarnings("ignore:Unverified HTTPS")]

REQUEST = EXAMPLES["examples"][0]["request"]
REAL_REQUEST = {"data": [[1.0, 1.0, 1.0]]}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AksRig]:
    made = AksRig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace of the test's own."""
    kubeconfig = cluster_or_skip()
    from kubernetes import client, config

    core = client.CoreV1Api(config.new_client_from_config(kubeconfig))
    name = f"test-{uuid.uuid4().hex[:10]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


def standin(rig: AksRig, directory: Path, version: str, fault: str = "") -> Release:
    return rig.prepare(make_release(directory / f"release-{version}-{fault}", version, fault=fault))


class TestWhatIsMade:
    """Objects as the cluster accepted them."""

    def test_pods_have_no_rights_and_limits(self, rig: AksRig, tmp_path: Path) -> None:
        """The restricted profile, no token, probes, requests that are limits, keys as a file."""
        deploy(rig.target, standin(rig, tmp_path, "1"))
        pod = rig.pods()[0]
        spec, container = pod.spec, pod.spec.containers[0]
        assert spec.automount_service_account_token is False
        assert spec.security_context.run_as_non_root is True
        assert spec.security_context.seccomp_profile.type == "RuntimeDefault"
        security = container.security_context
        assert (security.allow_privilege_escalation, security.read_only_root_filesystem) == (False, True)
        assert security.capabilities.drop == ["ALL"]
        assert container.resources.requests == container.resources.limits == {"cpu": "150m", "memory": "256Mi"}
        assert all((container.startup_probe, container.readiness_probe, container.liveness_probe))
        assert "@sha256:" in container.image
        keys = rig.target.keys()
        assert keys.primary not in str(pod) and keys.secondary not in str(pod)

    def test_the_newest_versions_that_the_cluster_serves(self, rig: AksRig, tmp_path: Path) -> None:
        """Autoscaler, disruption budget, network policy and service account are there and ours."""
        deploy(rig.target, standin(rig, tmp_path, "1"))
        kinds = {
            "HorizontalPodAutoscaler": "autoscaling/v1",
            "PodDisruptionBudget": "policy/v1beta1",
            "NetworkPolicy": "networking.k8s.io/v1",
            "ServiceAccount": "v1",
            "Service": "v1",
        }
        for kind, api_version in kinds.items():
            managers = [entry["manager"] for entry in rig.object(api_version, kind)["metadata"]["managedFields"]]
            assert "mlops-tasks" in managers, kind

    def test_a_host_gets_an_ingress_with_tls(self, rig: AksRig, tmp_path: Path) -> None:
        """Its address is https; the cluster has no ingress controller, so it is not asked here."""
        release = standin(rig, tmp_path, "1")
        target = rig.open(AKS_HOST="model.example.com")
        status = deploy(target, release)
        assert status.url == "https://model.example.com"
        found = rig.object("networking.k8s.io/v1", "Ingress")
        assert found["spec"]["tls"] == [{"hosts": ["model.example.com"], "secretName": f"{rig.name}-tls"}]
        target.undeploy(print)

    def test_a_plan_shows_what_the_server_would_change(self, rig: AksRig, tmp_path: Path) -> None:
        """The diff is the server's own, and no key is in it."""
        release = standin(rig, tmp_path, "1")
        deploy(rig.target, release)
        plan = rig.open(AKS_MEMORY_GB="0.5").plan(release)
        change = plan.steps[-1]
        assert (change.action, change.subject) == ("change", f"Deployment {rig.name}")
        assert "-            memory: 256Mi" in change.diff and "+            memory: 512Mi" in change.diff
        keys = rig.target.keys()
        assert not [step for step in plan.steps if keys.primary in step.diff]


class TestBadLuck:
    """Message and exit code of its kind, and the version before still serves."""

    def test_an_image_that_was_never_pushed(self, tmp_path: Path) -> None:
        """Known before the cluster is asked."""
        target = AksTarget(settings_for(tmp_path / "home"))
        with pytest.raises(UsageError, match="inv build-image --push"):
            target.plan(make_release(tmp_path / "release"))

    def test_a_cluster_that_cannot_be_reached(self, tmp_path: Path) -> None:
        """Exit code 5, naming its address."""
        pytest.importorskip("kubernetes")
        port = free_port()
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(_KUBECONFIG.format(server=f"https://127.0.0.1:{port}", token="t"))
        target = AksTarget(settings_for(tmp_path, KUBECONFIG=str(kubeconfig)))
        with pytest.raises(UnavailableError, match=rf"https://127.0.0.1:{port}: the cluster cannot be reached"):
            target.status()

    def test_too_few_rights(self, rig: AksRig, tmp_path: Path, namespace: str) -> None:
        """A service account without roles: exit code 5, with the cluster's words and where the rights are listed."""
        from kubernetes import client

        core = client.CoreV1Api(rig.api)
        secret = _wait_for_token(core, namespace)
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(_KUBECONFIG.format(server=rig.api.configuration.host, token=secret))
        poor = rig.open(KUBECONFIG=str(kubeconfig), AKS_NAMESPACE=namespace)
        with pytest.raises(UnavailableError, match=r"(?s)forbidden.*docs/aks.md"):
            poor.plan(standin(rig, tmp_path, "1"))
        assert [finding.ok for finding in poor.diagnose()] == [True, False]

    def test_a_quota(self, tmp_path: Path, namespace: str) -> None:
        """No room for one pod more: the rollout is taken back, with the cluster's words."""
        from kubernetes import client

        rig = AksRig(tmp_path, AKS_NAMESPACE=namespace)
        try:
            deploy(rig.target, standin(rig, tmp_path, "1"))
            quota = {"metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}}
            client.CoreV1Api(rig.api).create_namespaced_resource_quota(namespace, quota)
            _wait_for_quota(client.CoreV1Api(rig.api), namespace)
            with pytest.raises(UnhealthyError, match="exceeded quota"):
                deploy(rig.target, standin(rig, tmp_path, "2"))
            assert version_at(rig.target.endpoint()) == "1"
            status = rig.target.status()
            assert status is not None and status.model["version"] == "1"
        finally:
            rig.close()

    def test_an_image_that_the_registry_does_not_have(self, rig: AksRig, tmp_path: Path) -> None:
        """The pod cannot pull it: exit code 6 with the event."""
        first = standin(rig, tmp_path, "1")
        deploy(rig.target, first)
        second = replace(standin(rig, tmp_path, "2"), image_digest="sha256:" + "0" * 64)
        with pytest.raises(UnhealthyError, match=r"ErrImagePull|ImagePullBackOff"):
            deploy(rig.target, second)
        assert version_at(rig.target.endpoint()) == "1"

    def test_a_pod_that_never_gets_ready(self, rig: AksRig, tmp_path: Path) -> None:
        """After the time it was given, with the pod's last lines."""
        deploy(rig.target, standin(rig, tmp_path, "1"))
        impatient = rig.open(AKS_STARTUP_TIMEOUT="10")
        with pytest.raises(UnhealthyError, match=r"(?s)did not come up.*starting"):
            deploy(impatient, standin(rig, tmp_path, "2", "never-ready"))
        assert version_at(rig.target.endpoint()) == "1"

    def test_a_deployment_that_someone_changed_by_hand(self, rig: AksRig, tmp_path: Path) -> None:
        """Refused, naming who and what; with AKS_TAKE_OVER it is ours again."""
        from kubernetes import client

        deploy(rig.target, standin(rig, tmp_path, "1"))
        limits = {"limits": {"memory": "300Mi", "cpu": "150m"}, "requests": {"memory": "300Mi", "cpu": "150m"}}
        patch = {"spec": {"template": {"spec": {"containers": [{"name": "scoring", "resources": limits}]}}}}
        client.AppsV1Api(rig.api).patch_namespaced_deployment(rig.name, "default", patch, field_manager="somebody")
        second = standin(rig, tmp_path, "2")
        with pytest.raises(UnavailableError, match=r"(?s)somebody.*AKS_TAKE_OVER"):
            rig.target.plan(second)
        assert version_at(rig.target.endpoint()) == "1"
        deploy(rig.open(AKS_TAKE_OVER="true"), second)
        assert version_at(rig.target.endpoint()) == "2"

    @pytest.mark.parametrize("moment", ["verifying", "rolling"])
    def test_a_deployment_that_is_killed(self, rig: AksRig, tmp_path: Path, moment: str) -> None:
        """``kill -9`` while the candidate is verified, or while pods are replaced, which the cluster goes on with: a
        version always answers, and the next deployment waits for the lease, and works."""
        deploy(rig.target, standin(rig, tmp_path, "1"))
        process = _deploying(rig, standin(rig, tmp_path, "2"), moment)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == moment
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert version_at(rig.target.endpoint()) in {"verifying": ("1",), "rolling": ("1", "2")}[moment]
        deploy(rig.target, standin(rig, tmp_path, "3"))
        assert version_at(rig.target.endpoint()) == "3"
        wait_until(
            lambda: {pod.metadata.labels["mlops/track"] for pod in rig.pods()} == {"stable"},
            "the killed deployment's candidate is removed",
        )


class TestCanary:
    """A share of the traffic for the candidate, and an end of it either way."""

    def test_a_canary_is_promoted_when_it_is_no_worse(self, tmp_path: Path) -> None:
        """Undecided first, then decided by both versions' metrics; afterwards it can be rolled back."""
        rig = AksRig(tmp_path, AKS_MAX_REPLICAS="4", CANARY_MIN_REQUESTS="50")
        try:
            first = rig.prepare(make_real_release(tmp_path / "one", "1"))
            second = rig.prepare(make_real_release(tmp_path / "two", "2"))
            deploy(rig.target, first)
            status = deploy(rig.target, second, canary=25)
            assert status.model["version"] == "1"
            assert "version 2 gets 25.0 % of the traffic" in status.state
            with pytest.raises(UnavailableError, match="undecided"):
                rig.target.promote(print)
            with pytest.raises(UsageError, match="a canary is running"):
                rig.target.plan(first)
            with Traffic(rig.target.endpoint(), REAL_REQUEST, keep_alive=False) as traffic:
                traffic.wait_for(3000)
            assert traffic.lost == []
            said: list[str] = []
            assert rig.target.promote(said.append).model["version"] == "2"
            counted = re.search(r"(\d+) requests to the candidate, (\d+) to the serving version", said[0])
            assert counted is not None
            assert 0.10 < int(counted[1]) / traffic.answered < 0.40
            assert int(counted[1]) + int(counted[2]) == traffic.answered
            status = rig.open().rollback(lambda endpoint, package: smoke_test(endpoint, first), print)
            assert status.model["version"] == "1"
            assert version_at_real(rig.target.endpoint()) == "1"
        finally:
            rig.close()

    def test_a_worse_candidate_is_refused_and_rolled_back(self, tmp_path: Path) -> None:
        """A fifth of its answers are errors: promote refuses with figures, rollback ends the canary."""
        rig = AksRig(tmp_path, AKS_MAX_REPLICAS="4", CANARY_MIN_REQUESTS="50")
        try:
            deploy(rig.target, rig.prepare(make_real_release(tmp_path / "one", "1")))
            worse = make_real_release(tmp_path / "two", "2", _FAILS_ABOVE_ONE)
            deploy(rig.target, rig.prepare(worse), canary=50)
            with Traffic(rig.target.endpoint(), {"data": [[2.0, 1.0, 1.0]]}) as traffic:
                traffic.wait_for(3000)
            with pytest.raises(UnhealthyError, match="fails more often"):
                rig.target.promote(print)
            status = rig.target.rollback(lambda endpoint, package: None, print)
            assert (status.model["version"], status.state) == ("1", "serving")
        finally:
            rig.close()


def version_at_real(endpoint: Endpoint) -> str:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    answer = requests.get(f"{endpoint.url}/model", headers=headers, timeout=30)
    assert answer.status_code == 200
    return str(answer.json()["version"])


@pytest.mark.timeout(1800)
def test_twenty_thousand_requests_and_none_is_lost(tmp_path: Path) -> None:
    """Rolling updates and a rollback of the real scoring server under load, with keep-alive and without."""
    rig = AksRig(tmp_path, AKS_MIN_REPLICAS="2", AKS_CPU="0.3")
    try:
        first = rig.prepare(make_real_release(tmp_path / "one", "1"))
        second = rig.prepare(make_real_release(tmp_path / "two", "2"))
        deploy(rig.target, first)
        with Traffic(rig.target.endpoint(), REAL_REQUEST) as traffic:
            for number, chosen in enumerate([second, first, second], start=1):
                deploy(rig.target, chosen)
                traffic.wait_for(number * 6000, timeout=400)
            rig.target.rollback(lambda endpoint, package: None, print)
            traffic.wait_for(max(20000, traffic.answered + 1000), timeout=400)
        assert traffic.lost == []
        assert traffic.answered >= 20000
        assert version_at_real(rig.target.endpoint()) == "1"
    finally:
        rig.close()


_FAILS_ABOVE_ONE = """
import json
import random
def init():
    pass
def run(data):
    rows = json.loads(data)["data"]
    if rows[0][0] > 1 and random.random() < 0.3:
        raise RuntimeError("planted")
    return {"result": [row[0] + 2 * row[1] + 3 * row[2] for row in rows]}
"""

_KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{server}", insecure-skip-tls-verify: true}}}}]
users: [{{name: u, user: {{token: "{token}"}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""


def _wait_for_token(core: Any, namespace: str) -> str:
    import base64

    def tokens() -> list[str]:
        secrets = core.list_namespaced_secret(namespace).items
        return [s.data["token"] for s in secrets if s.type == "kubernetes.io/service-account-token" and s.data]

    wait_until(tokens, "the cluster has made a token")
    return base64.b64decode(tokens()[0]).decode()


def _wait_for_quota(core: Any, namespace: str) -> None:
    wait_until(lambda: core.read_namespaced_resource_quota("two", namespace).status.used, "the quota counts")


def _deploying(rig: AksRig, release: Release, moment: str) -> subprocess.Popen[str]:
    """Another process that deploys ``release`` and stays where its progress holds the word ``moment``."""
    code = f"""
import time
from pathlib import Path
from ml_service.ports import Release
from ml_service.targets.aks.target import AksTarget
from tests.support.settings import settings_for
def stay(line):
    if {moment!r} in line:
        print({moment!r}, flush=True)
        time.sleep(600)
release = Release(Path({str(release.package)!r}), {release.package_sha256!r}, "toy", {release.model_version!r}, "b",
                  {release.image!r}, {release.image_digest!r})
target = AksTarget(settings_for(Path({str(rig.home)!r}), **{rig.variables!r}))
target.apply(target.plan(release), lambda endpoint, package: None, stay)
"""
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
