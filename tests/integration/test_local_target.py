"""The local target under bad luck: killed processes, a full disk, a port in use, slow and broken versions, and load."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from ml_service.config import LocalSettings, Settings
from ml_service.config.scoring import ScoringSettings
from ml_service.errors import IntegrityError, UnavailableError, UnhealthyError, UsageError
from ml_service.ports import Endpoint, Release, Verify
from ml_service.smoke import smoke
from ml_service.targets import open_target
from ml_service.targets.local.state import Paths
from ml_service.targets.local.supervisor_client import SupervisorClient
from ml_service.targets.local.target import LocalTarget
from tests.support.ports import free_port
from tests.support.releases import EXAMPLES, make_release, no_verification
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REQUEST = EXAMPLES["examples"][0]["request"]


class LocalTargetEnv:
    """A local target in a directory of its own, and the releases to put on it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made = 0
        self.settings = Settings(
            root=directory,
            home=directory / "home",
            store=directory / "home" / "store",
            local=LocalSettings(port=0, startup_timeout=30, drain_timeout=30),
            env=dict(os.environ),
        )

    @property
    def target(self) -> LocalTarget:
        return LocalTarget(self.settings)

    @property
    def paths(self) -> Paths:
        return Paths(self.settings.home)

    def change(self, **local: Any) -> None:
        """Other settings of the target from now on."""
        self.settings = replace(self.settings, local=replace(self.settings.local, **local))

    def release(self, version: str = "1", fault: str = "") -> Release:
        self._made += 1
        return make_release(self._directory / f"release-{self._made}", version, fault=fault)

    def deploy(self, release: Release, progress: Callable[[str], None] = print) -> None:
        target = self.target
        target.apply(target.plan(release), question_of(release), progress)

    def ask(self, path: str = "/score", request: Any = REQUEST, **options: Any) -> requests.Response:
        endpoint = self.target.endpoint()
        headers = {"Authorization": f"Bearer {endpoint.key}"}
        return requests.post(f"{endpoint.url}{path}", json=request, headers=headers, timeout=60, **options)

    @property
    def serving(self) -> str:
        """The version that answers."""
        answer = self.ask()
        assert answer.status_code == 200
        return answer.headers["X-Model-Version"]

    @property
    def supervisor(self) -> int:
        """Its process id."""
        with SupervisorClient(self.paths.control) as client:
            return int(client.ask("status")["pid"])

    @property
    def server(self) -> int:
        """The process id of the server that serves."""
        return int(requests.get(f"{self.target.endpoint().url}/health/live", timeout=60).json()["pid"])

    @property
    def processes(self) -> list[int]:
        """Every scoring process of this target."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and str(self.paths.packages) in _command_line(entry):
                found.append(int(entry.name))
        return found


def _command_line(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def question_of(release: Release) -> Verify:
    return lambda endpoint, package: smoke(endpoint, release.package, timeout=30, progress=print)


def is_gone(process: int) -> bool:
    """Whether it ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def env(tmp_path: Path) -> Iterator[LocalTargetEnv]:
    made = LocalTargetEnv(tmp_path)
    yield made
    made.target.undeploy(print)
    wait_until(lambda: made.processes == [], "every process of the target has ended")


class TestLoad:
    """No request is lost while versions change: fully sent, no complete 2xx, never sent again by the client."""

    def test_two_thousand_requests_over_several_swaps(self, env: LocalTargetEnv) -> None:
        """Deployments, a refused one and a rollback under load, with keep-alive and without."""
        lose_nothing(env, requests_at_least=2_000)

    @pytest.mark.soak
    @pytest.mark.timeout(1800)
    def test_twenty_thousand_requests_over_many_swaps(self, env: LocalTargetEnv) -> None:
        """The full size."""
        lose_nothing(env, requests_at_least=20_000)

    def test_a_request_in_flight_is_answered_by_the_version_it_went_to(self, env: LocalTargetEnv) -> None:
        """The version before ends what it works on, while the new one has the traffic already."""
        env.deploy(env.release("1", fault="slow"))
        answers: list[str] = []
        asking = [threading.Thread(target=lambda: answers.append(env.serving)) for _ in range(5)]
        for thread in asking:
            thread.start()
        env.deploy(env.release("2"))
        for thread in asking:
            thread.join()
        assert env.serving == "2"
        assert len(answers) == 5 and "1" in answers


def lose_nothing(env: LocalTargetEnv, *, requests_at_least: int) -> None:
    first, second, wrong = env.release("1"), env.release("2"), env.release("3", fault="wrong")
    env.deploy(first)
    with Traffic(env.target.endpoint(), REQUEST) as traffic:
        while traffic.answered + len(traffic.lost) < requests_at_least:
            env.deploy(second)
            traffic.wait_for(traffic.answered + 100)
            with pytest.raises(UnhealthyError):
                env.deploy(wrong)
            env.target.rollback(no_verification, print)
            traffic.wait_for(traffic.answered + 100)
    assert traffic.lost == []
    assert traffic.answered >= requests_at_least
    assert set(traffic.versions) == {"1", "2"}


DEPLOY_AND_DIE = """
import os, signal, sys, json
from pathlib import Path
from ml_service.config import LocalSettings, Settings
from ml_service.ports import Release
from ml_service.targets.local.target import LocalTarget

home, release, moment = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
local = LocalSettings(port=0)
settings = Settings(root=home, home=home, store=home / "store", local=local, env=dict(os.environ))

def die(here):
    if moment in here:
        os.kill(os.getpid(), signal.SIGKILL)

target = LocalTarget(settings)
plan = target.plan(Release(**{**release, "package": Path(release["package"])}))
target.apply(plan, lambda endpoint, package: die("verify"), die)
"""


def deploy_and_die(env: LocalTargetEnv, release: Release, moment: str) -> int:
    """Deploy in a process of its own that kills itself at ``moment``; its exit code."""
    described = json.dumps({**vars(release), "package": str(release.package)})
    command = [sys.executable, "-c", DEPLOY_AND_DIE, str(env.settings.home), described, moment]
    return subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode


class TestKilled:
    """After ``kill -9`` of anything at any moment, status tells the truth and the next deployment works."""

    @pytest.mark.parametrize(
        ("moment", "then"),
        [("copying", "1"), ("starting", "1"), ("is healthy", "1"), ("verify", "1"), ("has the traffic", "2")],
    )
    def test_deploy_killed(self, env: LocalTargetEnv, moment: str, then: str) -> None:
        """Before the traffic moved the version before serves and the candidate goes; after it, the new one serves."""
        env.deploy(env.release("1"))
        assert deploy_and_die(env, env.release("2"), moment) == -signal.SIGKILL
        status = env.target.status()
        assert status is not None
        assert (status.model["version"], env.serving) == (then, then)
        wait_until(lambda: len(env.processes) == 2, "there are a watchdog and its server")
        env.deploy(env.release("3"))
        assert env.serving == "3"

    def test_first_deployment_killed(self, env: LocalTargetEnv) -> None:
        """Nothing is deployed then, nothing runs, and the next one works."""
        assert deploy_and_die(env, env.release("1"), "verify") == -signal.SIGKILL
        assert env.target.status() is None
        wait_until(lambda: env.processes == [], "every process of the target has ended")
        env.deploy(env.release("2"))
        assert env.serving == "2"

    def test_a_copy_cut_short_is_made_again(self, env: LocalTargetEnv) -> None:
        """What an interrupted copy left is neither trusted nor kept."""
        release = env.release("1")
        copy = env.paths.package(release.package_sha256)
        copy.mkdir(parents=True)
        (copy / "manifest.json").write_text("{")
        left = env.paths.packages / ".left-by-a-killed-deployment"
        left.mkdir()
        env.deploy(release)
        assert env.serving == "1"
        assert [path.name for path in env.paths.packages.iterdir()] == [release.package_sha256]

    def test_supervisor_killed(self, env: LocalTargetEnv) -> None:
        """Its processes go with it, status says that it is stopped, and deploying the same package brings all back."""
        release = env.release("1")
        env.deploy(release)
        url = env.target.endpoint().url
        os.kill(env.supervisor, signal.SIGKILL)
        wait_until(lambda: env.processes == [], "every process of the target has ended")
        status = env.target.status()
        assert status is not None and status.state.startswith("stopped")
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=60)
        env.deploy(release)
        status = env.target.status()
        assert status is not None
        assert (status.state, env.serving, env.target.endpoint().url) == ("serving", "1", url)

    def test_supervisor_killed_in_a_deployment(self, env: LocalTargetEnv) -> None:
        """The deployment fails as unavailable; the next one works and still knows the version before."""
        env.deploy(env.release("1"))
        second = env.release("2")

        def kill(endpoint: Endpoint, package: Path | None) -> None:
            os.kill(env.supervisor, signal.SIGKILL)

        target = env.target
        with pytest.raises(UnavailableError, match="went away"):
            target.apply(target.plan(second), kill, print)
        env.deploy(second)
        status = env.target.status()
        assert status is not None and status.previous == {"name": "toy", "version": "1"}
        assert env.serving == "2"

    def test_server_killed(self, env: LocalTargetEnv) -> None:
        """It is started again, and requests that come meanwhile wait for it."""
        env.deploy(env.release("1"))
        before = env.server
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: is_gone(before), "the killed process has ended")
        assert [env.serving for _ in range(20)] == ["1"] * 20
        assert env.server != before
        assert any("restarted" in line for line in env.target.logs(20))

    def test_server_that_dies_of_a_request(self, env: LocalTargetEnv) -> None:
        """That request gets 502, once: it is not given to the next process; the others are answered."""
        env.deploy(env.release("1", fault="fragile"))
        before = env.server
        assert env.ask("/die").status_code == 502
        assert env.serving == "1"
        assert env.server != before
        assert len([line for line in env.target.logs(100) if '"ended"' in line]) == 1


class TestBadVersions:
    """A version that cannot serve is removed, says why, and the version before serves."""

    def test_never_ready(self, env: LocalTargetEnv) -> None:
        """It is given up after the time that the message names."""
        env.deploy(env.release("1"))
        env.change(startup_timeout=3)
        lines: list[str] = []
        with pytest.raises(UnhealthyError, match=r"not ready after 3 s \(/health/ready: 503\)"):
            env.deploy(env.release("2", fault="never-ready"), lines.append)
        assert any("waiting for /health/ready: 503" in line for line in lines)
        assert env.serving == "1"
        wait_until(lambda: len(env.processes) == 2, "2 processes are there")

    def test_crash_at_start(self, env: LocalTargetEnv) -> None:
        """The message holds the exit code, its last log lines, and what serves."""
        env.deploy(env.release("1"))
        with pytest.raises(UnhealthyError) as caught:
            env.deploy(env.release("2", fault="crash"))
        assert "ended with code 1 before it was ready" in caught.value.what
        assert "cannot load the model: the planted fault" in caught.value.what
        assert "toy version 1 still serves" in caught.value.next_step

    def test_changed_after_packaging(self, env: LocalTargetEnv) -> None:
        """A file that is not what the manifest says is refused by name."""
        env.deploy(env.release("1"))
        release = env.release("2")
        (release.package / "scoring" / "server.py").write_text("print('mine now')")
        with pytest.raises(IntegrityError, match="scoring/server.py was changed"):
            env.deploy(release)
        assert env.serving == "1"

    def test_another_package_than_planned(self, env: LocalTargetEnv) -> None:
        """A package that was exchanged whole, between plan and apply, is refused."""
        planned, other = env.release("1"), env.release("2")
        with pytest.raises(IntegrityError, match="not the package that was planned"):
            env.deploy(replace(planned, package=other.package))
        assert env.target.status() is None

    def test_rollback_to_a_damaged_copy(self, env: LocalTargetEnv) -> None:
        """The target's own copies are checked as well, each time that one is started."""
        first = env.release("1")
        env.deploy(first)
        env.deploy(env.release("2"))
        (env.paths.package(first.package_sha256) / "model" / "model.onnx").write_bytes(b"another")
        with pytest.raises(IntegrityError, match="model/model.onnx was changed"):
            env.target.rollback(no_verification, print)
        assert env.serving == "2"


class TestBadSurroundings:
    """What the machine may do to a deployment."""

    def test_port_in_use(self, env: LocalTargetEnv) -> None:
        """The message names the port and the setting; nothing is deployed."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            env.change(port=port)
            assert [finding.ok for finding in env.target.diagnose() if "port" in finding.subject] == [False]
            with pytest.raises(UnavailableError) as caught:
                env.deploy(env.release("1"))
        assert caught.value.where == f"127.0.0.1:{port}"
        assert "LOCAL_PORT=" in caught.value.next_step
        assert env.target.status() is None

    def test_no_unix_sockets(self, env: LocalTargetEnv, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on Windows' drives under WSL: inv doctor and make ci say where MLOPS_HOME can be, before anything runs."""

        class Socket(socket.socket):
            def bind(self, address: Any) -> None:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(socket, "socket", Socket)
        found = next(finding for finding in env.target.diagnose() if "socket" in finding.subject)
        assert (found.ok, "Operation not supported" in found.detail) == (False, True)
        assert "set MLOPS_HOME" in found.next_step and "/mnt/c" in found.next_step

    def test_default_port_in_use(self, env: LocalTargetEnv, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without LOCAL_PORT the default is a first choice: a free port takes its place, which is said, and is kept."""
        said: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            monkeypatch.setattr(LocalSettings, "port", port)
            env.change(port=port)
            found = next(finding for finding in env.target.diagnose() if "port" in finding.subject)
            assert (found.ok, "takes a free one" in found.detail) == (True, True)
            env.deploy(env.release("1"), said.append)
            url = env.target.endpoint().url
            assert url != f"http://127.0.0.1:{port}"
            assert f"port {port} is in use by another program: the service takes a free one" in said
        env.deploy(env.release("2"))
        assert (env.serving, env.target.endpoint().url) == ("2", url)

    def test_another_port(self, env: LocalTargetEnv) -> None:
        """With LOCAL_PORT changed, the same package moves there, and its old port is free again."""
        release = env.release("1")
        env.deploy(release)
        before = env.target.endpoint().url
        env.change(port=free_port())
        env.deploy(release)
        assert env.target.endpoint().url == f"http://127.0.0.1:{env.settings.local.port}"
        assert env.serving == "1"
        with pytest.raises(requests.ConnectionError):
            requests.get(before, timeout=60)

    def test_another_port_in_use(self, env: LocalTargetEnv) -> None:
        """The service stays where it is."""
        env.deploy(env.release("1"))
        with socket.create_server(("127.0.0.1", 0)) as other:
            env.change(port=other.getsockname()[1])
            with pytest.raises(UnavailableError):
                env.deploy(env.release("2"))
        assert env.serving == "1"

    def test_port_taken_while_stopped(self, env: LocalTargetEnv) -> None:
        """After a crash somebody else has the port: status says so, and another port helps."""
        release = env.release("1")
        env.deploy(release)
        port = int(env.target.endpoint().url.rpartition(":")[2])
        os.kill(env.supervisor, signal.SIGKILL)
        wait_until(lambda: env.processes == [], "every process of the target has ended")
        with socket.create_server(("127.0.0.1", port)):
            env.change(port=port)
            with pytest.raises(UnavailableError):
                env.deploy(release)
            env.change(port=0)
            env.deploy(release)
            assert env.target.endpoint().url != f"http://127.0.0.1:{port}"
            assert env.serving == "1"

    def test_full_disk(self, env: LocalTargetEnv) -> None:
        """The message says so; the version before still answers, and with space again the deployment works."""
        with tmpfs(env.settings.home, "2m"):
            env.deploy(env.release("1"))
            filler = env.settings.home / "filler"
            fill(filler)
            second = env.release("2")
            with pytest.raises(UnavailableError, match="No space left"):
                env.deploy(second)
            assert env.serving == "1"
            filler.unlink()
            env.deploy(second)
            assert env.serving == "2"
            env.target.undeploy(print)

    def test_disk_that_fills_up_before_the_traffic_moves(self, env: LocalTargetEnv) -> None:
        """What cannot be written down does not happen: the version before has the traffic, here and after a restart."""
        with tmpfs(env.settings.home, "2m"):
            env.deploy(env.release("1"))
            target, second = env.target, env.release("2")
            filler = env.settings.home / "filler"
            with pytest.raises(UnavailableError, match="No space left"):
                target.apply(target.plan(second), lambda endpoint, package: fill(filler), print)
            status = env.target.status()
            assert status is not None
            assert (status.model["version"], env.serving) == ("1", "1")
            filler.unlink()
            env.target.undeploy(print)

    def test_interrupt_while_a_version_starts(self, env: LocalTargetEnv) -> None:
        """Ctrl-C in the terminal: the process ends as interrupted, the candidate goes, the version before serves."""
        env.deploy(env.release("1"))
        release = env.release("2", fault="never-ready")
        described = json.dumps({**vars(release), "package": str(release.package)})
        command = [sys.executable, "-c", DEPLOY_AND_DIE, str(env.settings.home), described, "never"]
        deploying = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        wait_until(lambda: len(env.processes) == 4, "4 processes are there")
        deploying.send_signal(signal.SIGINT)
        _, stderr = deploying.communicate(timeout=60)
        assert b"KeyboardInterrupt" in stderr
        wait_until(lambda: len(env.processes) == 2, "2 processes are there")
        assert env.serving == "1"

    def test_a_home_with_a_long_name(self, tmp_path: Path) -> None:
        """The control socket works where its path is longer than the system's limit for one."""
        env = LocalTargetEnv(tmp_path / ("long" * 20) / ("name" * 20))
        env.deploy(env.release("1"))
        assert len(str(env.paths.control)) > 107
        assert env.serving == "1"
        env.target.undeploy(print)

    def test_state_that_is_not_ours(self, env: LocalTargetEnv) -> None:
        """A damaged state file is named, and ``undeploy`` clears it away."""
        env.paths.directory.mkdir(parents=True)
        env.paths.state.write_text('{"port": 1}')
        with pytest.raises(IntegrityError, match="state.json") as caught:
            env.target.status()
        assert "undeploy" in caught.value.next_step
        env.target.undeploy(print)
        assert env.target.status() is None

    def test_removed_home(self, env: LocalTargetEnv) -> None:
        """Whoever removes MLOPS_HOME leaves no process behind."""
        env.deploy(env.release("1"))
        supervisor = env.supervisor
        shutil.rmtree(env.settings.home)
        wait_until(lambda: is_gone(supervisor), "the killed process has ended")
        wait_until(lambda: env.processes == [], "every process of the target has ended")


class TestImports:
    """A task that does not deploy pays nothing for it."""

    def test_libraries_are_imported_when_used(self) -> None:
        """The adapter and the smoke test alone import neither HTTP library nor the lock."""
        code = "import sys, ml_service.smoke, ml_service.targets.local.target; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"aiohttp", "requests", "filelock", "asyncio"} & set(done.stdout.split()) == set()

    def test_targets_open_by_name(self, env: LocalTargetEnv) -> None:
        """An unknown one is refused with the names of those that exist."""
        assert open_target("local", env.settings).name == "local"
        with pytest.raises(UsageError, match="unknown target 'mars'") as caught:
            open_target("mars", env.settings)
        assert "local" in caught.value.next_step


class TestSecrets:
    """Keys are in one file that only this user can read."""

    def test_where_the_keys_are(self, env: LocalTargetEnv) -> None:
        """Mode 0600 in 0700, in no other file, in no command line, and gone after undeploy."""
        env.deploy(env.release("1", fault="tells"))
        keys = env.target.keys()
        modes = [path.stat().st_mode & 0o777 for path in (env.paths.keys, env.paths.keys.parent)]
        assert modes == [0o600, 0o700]
        files = [path for path in env.settings.home.rglob("*") if path.is_file() and path != env.paths.keys]
        assert not [path for path in files if keys.primary.encode() in path.read_bytes()]
        assert "my keys are *** and ***" in env.target.logs(100)
        assert not [pid for pid in env.processes if keys.primary in _command_line(Path(f"/proc/{pid}"))]
        env.target.undeploy(print)
        assert not env.paths.keys.exists()

    def test_credentials_of_the_task_stay_with_the_task(self, env: LocalTargetEnv) -> None:
        """The scoring process sees what Python needs and SCORING settings, not the variables of the pipeline."""
        secret = "not-for-the-model"
        variables = {**env.settings.env, "SP_APP_SECRET": secret, "SCORING_LOG": "all"}
        env.settings = replace(env.settings, env=variables)
        env.deploy(env.release("1"))
        environment = Path(f"/proc/{env.server}/environ").read_text()
        assert secret not in environment
        assert "SCORING_LOG=all" in environment

    @pytest.mark.parametrize("word", ["off", "OFF"])
    def test_without_keys_when_asked_for(self, env: LocalTargetEnv, word: str) -> None:
        """SCORING_AUTH=off: the endpoint has no key, and the smoke test expects none."""
        env.settings = replace(env.settings, env={**env.settings.env, "SCORING_AUTH": word})
        release = env.release("1")
        env.deploy(release)
        assert env.target.endpoint().key == ""
        assert requests.post(f"{env.target.endpoint().url}/score", json=REQUEST, timeout=60).status_code == 200

    def test_changed_options_are_a_change(self, env: LocalTargetEnv) -> None:
        """The same package with another number of workers is deployed again; ``previous`` stays what it was."""
        release = env.release("2")
        env.deploy(env.release("1"))
        env.deploy(release)
        env.settings = replace(env.settings, scoring=ScoringSettings(workers=2))
        before = env.server
        env.deploy(release)
        assert env.server != before
        status = env.target.status()
        assert status is not None and status.previous == {"name": "toy", "version": "1"}


class tmpfs:
    """A small file system for as long as the block lasts; the test is skipped where mounting is not allowed."""

    def __init__(self, directory: Path, size: str) -> None:
        self._directory = directory
        self._size = size

    def __enter__(self) -> None:
        self._directory.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self._directory)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self._directory)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
