"""The docker target under bad luck and under load, on a real engine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from ml_service.errors import IntegrityError, UnavailableError, UnhealthyError, UsageError
from ml_service.ports import Release
from ml_service.targets.docker.target import DockerTarget
from tests.support.images import push_image, removing_images
from tests.support.ports import free_port
from tests.support.releases import EXAMPLES, MakeRelease, deploy, make_release, release_maker, version_at
from tests.support.rigs.docker import DockerRig
from tests.support.services import registry_or_skip
from tests.support.settings import settings_for
from tests.support.sources import ROOT
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

REQUEST = EXAMPLES["examples"][0]["request"]

pytestmark = pytest.mark.docker


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DockerRig]:
    made = DockerRig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def release(tmp_path: Path, rig: DockerRig) -> MakeRelease:
    return release_maker(rig, tmp_path)


def test_a_version_runs_without_rights(rig: DockerRig, release: MakeRelease) -> None:
    """No capability, no new privilege, a read-only root, limits, a restart policy; keys are a file, not a variable."""
    deploy(rig.target, release("1"))
    for container in rig.containers():
        host = container.attrs["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges"])
        assert host["Memory"] > 0 and host["PidsLimit"] > 0
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert container.attrs["Config"]["User"] == "10001:10001"
        keys = rig.target.keys()
        assert keys.primary not in str(container.attrs) and keys.secondary not in str(container.attrs)


def test_only_the_proxy_is_reachable_from_elsewhere_and_only_where_it_is_asked_to_be(
    rig: DockerRig, release: MakeRelease
) -> None:
    """Every published port is on loopback."""
    deploy(rig.target, release("1"))
    bound = [
        binding["HostIp"]
        for container in rig.containers()
        for bindings in container.attrs["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    ]
    assert bound == ["127.0.0.1", "127.0.0.1"]


def test_a_version_whose_process_is_killed_comes_back(rig: DockerRig, release: MakeRelease) -> None:
    """The engine starts it again, and requests wait for it meanwhile."""
    deploy(rig.target, release("1", "fragile"))
    endpoint = rig.target.endpoint()
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    requests.post(f"{endpoint.url}/die", headers=headers, timeout=30)
    assert version_at(endpoint) == "1"


def test_a_proxy_that_is_killed_comes_back_with_its_route(rig: DockerRig, release: MakeRelease) -> None:
    """The route is in a volume, so the proxy that the engine starts again knows what serves."""
    deploy(rig.target, release("1"))
    proxy = next(c for c in rig.containers() if c.name.endswith("-front"))
    proxy.exec_run(["python", "-c", "import os, signal; os.kill(-1, signal.SIGKILL)"])

    def answers() -> bool:
        try:
            return version_at(rig.target.endpoint()) == "1"
        except requests.ConnectionError:
            return False

    wait_until(answers, "the proxy answers again")


@pytest.mark.parametrize("moment", ["verifying", "switched"])
def test_a_deployment_that_is_killed(rig: DockerRig, release: MakeRelease, tmp_path: Path, moment: str) -> None:
    """``kill -9`` at any moment: one of the two versions serves, whole, and the next deployment works and tidies up."""
    first, second, third = release("1"), release("2"), release("3")
    deploy(rig.target, first)
    process = _deploying(rig, second, moment)
    assert process.stdout is not None
    while moment not in (line := process.stdout.readline()):
        assert line, "it ended too soon"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    status = rig.open().status()
    assert status is not None
    assert status.model["version"] == {"verifying": "1", "switched": "2"}[moment]
    assert version_at(rig.target.endpoint()) == status.model["version"]
    deploy(rig.open(), third)
    assert version_at(rig.target.endpoint()) == "3"
    assert sorted(c.status for c in rig.containers()) == ["exited", "running", "running"]


def _deploying(rig: DockerRig, release: Release, moment: str) -> subprocess.Popen[str]:
    """Another process that deploys ``release``, says when it is at ``moment``, and stays there."""
    code = f"""
import sys, time
from pathlib import Path
from ml_service.ports import Release
from ml_service.targets.docker.target import DockerTarget
from tests.support.settings import settings_for
def stay(where):
    if where == {moment!r}:
        print(where, flush=True)
        time.sleep(600)
release = Release(Path({str(release.package)!r}), {release.package_sha256!r}, "toy", {release.model_version!r}, "b")
target = DockerTarget(settings_for(Path({str(rig.home)!r}), **{rig.variables!r}))
target.apply(target.plan(release), lambda endpoint, package: stay("verifying"),
             lambda line: stay("switched") if "has the traffic" in line else None)
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def interrupt_at(words: str) -> Callable[[str], None]:
    """Progress that a person interrupts with Ctrl-C when it says ``words``."""

    def progress(line: str) -> None:
        if words in line:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("before", [True, False])
def test_ctrl_c_after_the_switch_leaves_what_has_the_traffic(
    rig: DockerRig, release: MakeRelease, before: bool
) -> None:
    """The new version serves and is not removed, be it the first one or not; the next deployment tidies up."""
    first, second = release("1"), release("2")
    if before:
        deploy(rig.target, first)
    with pytest.raises(KeyboardInterrupt):
        rig.target.apply(rig.target.plan(second), lambda endpoint, package: None, interrupt_at("has the traffic"))
    status = rig.target.status()
    assert status is not None and (status.model["version"], status.state) == ("2", "serving")
    assert version_at(rig.target.endpoint()) == "2"
    deploy(rig.target, release("3"))
    assert sorted(c.status for c in rig.containers()) == ["exited", "running", "running"]


def test_ctrl_c_after_a_rollback_has_switched(rig: DockerRig, release: MakeRelease) -> None:
    """The version before has the traffic, so it is not stopped."""
    deploy(rig.target, release("1"))
    deploy(rig.target, release("2"))
    with pytest.raises(KeyboardInterrupt):
        rig.target.rollback(lambda endpoint, package: None, interrupt_at("has the traffic"))
    assert version_at(rig.target.endpoint()) == "1"


@pytest.mark.parametrize("moment", ["starting", "is healthy"])
def test_ctrl_c_before_the_switch(rig: DockerRig, release: MakeRelease, moment: str) -> None:
    """The candidate is removed, and the version before serves."""
    first, second = release("1"), release("2")
    deploy(rig.target, first)
    with pytest.raises(KeyboardInterrupt):
        rig.target.apply(rig.target.plan(second), lambda endpoint, package: None, interrupt_at(moment))
    assert version_at(rig.target.endpoint()) == "1"
    assert [c.status for c in rig.containers()] == ["running", "running"]


def test_ctrl_c_while_the_proxy_is_told_to_switch(
    rig: DockerRig, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command goes on without who gave it: it has ended before anybody decides which version is not needed."""
    from docker import APIClient

    first, second = release("1"), release("2")
    deploy(rig.target, first)
    start = APIClient.exec_start

    def interrupted(self: APIClient, exec_id: str, **options: object) -> object:
        monkeypatch.undo()
        start(self, exec_id, detach=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(APIClient, "exec_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy(rig.target, second)
    assert version_at(rig.target.endpoint()) == "2"


def test_a_model_that_never_gets_ready(rig: DockerRig, release: MakeRelease) -> None:
    """After the time it was given: exit code 6, its last lines, and the version before serves."""
    deploy(rig.target, release("1"))
    hurried = rig.open(DOCKER_STARTUP_TIMEOUT="2")
    with pytest.raises(UnhealthyError, match=r"(?s)was not ready after 2 s.*starting"):
        deploy(hurried, release("2", "never-ready"))
    assert version_at(rig.target.endpoint()) == "1"


def test_a_port_in_use(rig: DockerRig, release: MakeRelease) -> None:
    """Exit code 5, naming the port; nothing is left behind, and the deployment works once it is free."""
    first, port = release("1"), int(rig.variables["DOCKER_PORT"])
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port}.*is not available"):
            deploy(rig.target, first)
    assert rig.target.status() is None
    assert [c.status for c in rig.containers()] == []
    deploy(rig.target, first)
    assert version_at(rig.target.endpoint()) == "1"


def test_another_port_is_refused_while_it_serves(rig: DockerRig, release: MakeRelease) -> None:
    """Moving the port would close connections, so a person says so by undeploying."""
    deploy(rig.target, release("1"))
    with pytest.raises(UsageError, match="undeploy"):
        deploy(rig.open(DOCKER_PORT=str(free_port())), release("2"))
    assert version_at(rig.target.endpoint()) == "1"


def test_no_image(rig: DockerRig, tmp_path: Path) -> None:
    """A package whose image was never built is planned as nothing."""
    unbuilt = make_release(tmp_path / "unbuilt", "9", name=f"unbuilt-{rig.name}")
    with pytest.raises(UsageError, match="inv build-image"):
        rig.target.plan(unbuilt)


def test_an_image_that_the_registry_no_longer_has(rig: DockerRig, release: MakeRelease, tmp_path: Path) -> None:
    """The digest is known, the image is not: the version before serves."""
    deploy(rig.target, release("1"))
    gone = make_release(tmp_path / "gone", "9", name=f"gone-{rig.name}")
    gone = replace(gone, image=f"127.0.0.1:{free_port()}/gone", image_digest="sha256:" + "0" * 64)
    with pytest.raises(UnavailableError, match="cannot be pulled"):
        deploy(rig.target, gone)
    assert version_at(rig.target.endpoint()) == "1"


def test_an_image_of_the_same_package_does_not_stand_in_for_the_digest(rig: DockerRig, release: MakeRelease) -> None:
    """The engine has one with the right label, the registry has lost the one that was pushed: exit code 5."""
    gone = replace(release("1"), image=f"{registry_or_skip()}/{rig.name}", image_digest="sha256:" + "0" * 64)
    assert [step.action for step in rig.target.plan(gone).steps][0] == "pull"
    with pytest.raises(UnavailableError, match="the registry no longer has sha256:000"):
        deploy(rig.target, gone)
    assert rig.target.status() is None


def test_an_image_that_was_pushed_from_here_is_found_by_its_digest(rig: DockerRig, tmp_path: Path) -> None:
    """Nothing is pulled, and status names the digest."""
    repository = f"{registry_or_skip()}/{rig.name}"
    with removing_images(rig.client, repository):
        # A package of its own, since its image is removed.
        pushed = push_image(rig.client, make_release(tmp_path / "pushed", name=rig.name), repository)
        assert "pull" not in [step.action for step in rig.target.plan(pushed).steps]
        assert deploy(rig.target, pushed).image_digest == pushed.image_digest
        rig.target.undeploy(print)


def test_a_changed_package_is_refused(rig: DockerRig, release: MakeRelease) -> None:
    """The image is built, but the package beside it is not what the release says."""
    first, second = release("1"), release("2")
    deploy(rig.target, first)
    (second.package / "model" / "examples.json").write_text("{}")
    with pytest.raises(IntegrityError):
        deploy(rig.target, second)
    assert version_at(rig.target.endpoint()) == "1"


def test_a_container_removed_by_hand(rig: DockerRig, release: MakeRelease) -> None:
    """Status says it, and deploying the same package again repairs it."""
    first = release("1")
    deploy(rig.target, first)
    next(c for c in rig.containers() if not c.name.endswith("-front")).remove(force=True)
    status = rig.target.status()
    assert status is not None and "removed from the engine" in status.state
    assert deploy(rig.target, first).state == "serving"
    assert version_at(rig.target.endpoint()) == "1"


def test_a_proxy_removed_by_hand(rig: DockerRig, release: MakeRelease) -> None:
    """Nothing serves any more, status says so, and the next deployment starts afresh."""
    deploy(rig.target, release("1"))
    next(c for c in rig.containers() if c.name.endswith("-front")).remove(force=True)
    assert rig.target.status() is None
    deploy(rig.target, release("2"))
    assert version_at(rig.target.endpoint()) == "2"
    assert sorted(c.status for c in rig.containers()) == ["running", "running"]


def test_another_home_is_refused(rig: DockerRig, release: MakeRelease, tmp_path: Path) -> None:
    """Keys and the lock belong to one MLOPS_HOME; a second one must not act on the same containers."""
    deploy(rig.target, release("1"))
    foreign = DockerTarget(settings_for(tmp_path / "elsewhere", **rig.variables))
    with pytest.raises(UsageError, match="another MLOPS_HOME"):
        foreign.status()


def test_without_an_engine(tmp_path: Path) -> None:
    """Exit code 5, naming where the engine was looked for; ``inv doctor`` says the same."""
    target = DockerTarget(settings_for(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/nothing.sock"))
    with pytest.raises(UnavailableError, match="no container engine answers"):
        target.status()
    assert [finding.ok for finding in target.diagnose()] == [False]


def test_options_of_the_scoring_server_are_a_reason_to_deploy(rig: DockerRig, release: MakeRelease) -> None:
    """The same package with other limits is another deployment; the version before stays what it was."""
    first = release("1")
    deploy(rig.target, first)
    changed = rig.open(DOCKER_MEMORY_MB="512")
    assert changed.plan(first).steps
    status = deploy(changed, first)
    assert status.previous is None
    assert not changed.plan(first).steps


def test_a_rollback_answers_within_a_minute(rig: DockerRig, release: MakeRelease) -> None:
    """The version before is kept stopped on the engine, so nothing is built or pulled."""
    deploy(rig.target, release("1"))
    deploy(rig.target, release("2"))
    started = time.monotonic()
    rig.target.rollback(lambda endpoint, package: None, print)
    assert version_at(rig.target.endpoint()) == "1"
    assert time.monotonic() - started < 60


@pytest.mark.timeout(1200)
def test_twenty_thousand_requests_and_none_is_lost(rig: DockerRig, release: MakeRelease) -> None:
    """With keep-alive and without, while versions change again and again and go back."""
    first, second = release("1"), release("2")
    deploy(rig.target, first)
    with Traffic(rig.target.endpoint(), REQUEST) as traffic:
        for number, chosen in enumerate([second, first, second, first], start=1):
            deploy(rig.target, chosen)
            traffic.wait_for(number * 5000, timeout=600)
        rig.target.rollback(lambda endpoint, package: None, print)
        traffic.wait_for(traffic.answered + 1000, timeout=300)
    assert traffic.lost == []
    assert traffic.answered >= 20000
    assert set(traffic.versions) == {"1", "2"}


@pytest.mark.parametrize("word", ["off", "OFF"])
def test_a_server_without_keys_is_asked_without_one(rig: DockerRig, release: MakeRelease, word: str) -> None:
    """The word is read from the version that serves, as its server reads it."""
    deploy(rig.open(SCORING_AUTH=word), release("1"))
    endpoint = rig.open().endpoint()
    assert (endpoint.key, version_at(endpoint)) == ("", "1")
