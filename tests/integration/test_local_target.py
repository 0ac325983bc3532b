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
import time
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
from tests.support.deployments import no_question
from tests.support.fake_target import EXAMPLES, make_release
from tests.support.ports import free_port
from tests.support.traffic import Traffic

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REQUEST = EXAMPLES["examples"][0]["request"]


class Bench:
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


def eventually(condition: Callable[[], bool], timeout: float = 60) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_gone(process: int) -> bool:
    """Whether it ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.target.undeploy(print)
    assert eventually(lambda: made.processes == [])


class TestLoad:
    """No request is lost while versions change: fully sent, no complete 2xx, never sent again by the client."""

    def test_two_thousand_requests_over_several_swaps(self, bench: Bench) -> None:
        """Deployments, a refused one and a rollback under load, with keep-alive and without."""
        lose_nothing(bench, requests_at_least=2_000)

    @pytest.mark.soak
    @pytest.mark.timeout(1800)
    def test_twenty_thousand_requests_over_many_swaps(self, bench: Bench) -> None:
        """The full size."""
        lose_nothing(bench, requests_at_least=20_000)

    def test_a_request_in_flight_is_answered_by_the_version_it_went_to(self, bench: Bench) -> None:
        """The version before ends what it works on, while the new one has the traffic already."""
        bench.deploy(bench.release("1", fault="slow"))
        answers: list[str] = []
        asking = [threading.Thread(target=lambda: answers.append(bench.serving)) for _ in range(5)]
        for thread in asking:
            thread.start()
        bench.deploy(bench.release("2"))
        for thread in asking:
            thread.join()
        assert bench.serving == "2"
        assert len(answers) == 5 and "1" in answers


def lose_nothing(bench: Bench, *, requests_at_least: int) -> None:
    first, second, wrong = bench.release("1"), bench.release("2"), bench.release("3", fault="wrong")
    bench.deploy(first)
    with Traffic(bench.target.endpoint(), REQUEST) as traffic:
        while traffic.answered + len(traffic.lost) < requests_at_least:
            bench.deploy(second)
            traffic.wait_for(traffic.answered + 100)
            with pytest.raises(UnhealthyError):
                bench.deploy(wrong)
            bench.target.rollback(no_question, print)
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


def deploy_and_die(bench: Bench, release: Release, moment: str) -> int:
    """Deploy in a process of its own that kills itself at ``moment``; its exit code."""
    described = json.dumps({**vars(release), "package": str(release.package)})
    command = [sys.executable, "-c", DEPLOY_AND_DIE, str(bench.settings.home), described, moment]
    return subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode


class TestKilled:
    """After ``kill -9`` of anything at any moment, status tells the truth and the next deployment works."""

    @pytest.mark.parametrize(
        ("moment", "then"),
        [("copying", "1"), ("starting", "1"), ("is healthy", "1"), ("verify", "1"), ("has the traffic", "2")],
    )
    def test_deploy_killed(self, bench: Bench, moment: str, then: str) -> None:
        """Before the traffic moved the version before serves and the candidate goes; after it, the new one serves."""
        bench.deploy(bench.release("1"))
        assert deploy_and_die(bench, bench.release("2"), moment) == -signal.SIGKILL
        status = bench.target.status()
        assert status is not None
        assert (status.model["version"], bench.serving) == (then, then)
        assert eventually(lambda: len(bench.processes) == 2), "a watchdog and its server"
        bench.deploy(bench.release("3"))
        assert bench.serving == "3"

    def test_first_deployment_killed(self, bench: Bench) -> None:
        """Nothing is deployed then, nothing runs, and the next one works."""
        assert deploy_and_die(bench, bench.release("1"), "verify") == -signal.SIGKILL
        assert bench.target.status() is None
        assert eventually(lambda: bench.processes == [])
        bench.deploy(bench.release("2"))
        assert bench.serving == "2"

    def test_a_copy_cut_short_is_made_again(self, bench: Bench) -> None:
        """What an interrupted copy left is neither trusted nor kept."""
        release = bench.release("1")
        copy = bench.paths.package(release.package_sha256)
        copy.mkdir(parents=True)
        (copy / "manifest.json").write_text("{")
        left = bench.paths.packages / ".left-by-a-killed-deployment"
        left.mkdir()
        bench.deploy(release)
        assert bench.serving == "1"
        assert [path.name for path in bench.paths.packages.iterdir()] == [release.package_sha256]

    def test_supervisor_killed(self, bench: Bench) -> None:
        """Its processes go with it, status says that it is stopped, and deploying the same package brings all back."""
        release = bench.release("1")
        bench.deploy(release)
        url = bench.target.endpoint().url
        os.kill(bench.supervisor, signal.SIGKILL)
        assert eventually(lambda: bench.processes == [])
        status = bench.target.status()
        assert status is not None and status.state.startswith("stopped")
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=60)
        bench.deploy(release)
        status = bench.target.status()
        assert status is not None
        assert (status.state, bench.serving, bench.target.endpoint().url) == ("serving", "1", url)

    def test_supervisor_killed_in_a_deployment(self, bench: Bench) -> None:
        """The deployment fails as unavailable; the next one works and still knows the version before."""
        bench.deploy(bench.release("1"))
        second = bench.release("2")

        def kill(endpoint: Endpoint, package: Path | None) -> None:
            os.kill(bench.supervisor, signal.SIGKILL)

        target = bench.target
        with pytest.raises(UnavailableError, match="went away"):
            target.apply(target.plan(second), kill, print)
        bench.deploy(second)
        status = bench.target.status()
        assert status is not None and status.previous == {"name": "toy", "version": "1"}
        assert bench.serving == "2"

    def test_server_killed(self, bench: Bench) -> None:
        """It is started again, and requests that come meanwhile wait for it."""
        bench.deploy(bench.release("1"))
        before = bench.server
        os.kill(before, signal.SIGKILL)
        assert eventually(lambda: is_gone(before))
        assert [bench.serving for _ in range(20)] == ["1"] * 20
        assert bench.server != before
        assert any("restarted" in line for line in bench.target.logs(20))

    def test_server_that_dies_of_a_request(self, bench: Bench) -> None:
        """That request gets 502, once: it is not given to the next process; the others are answered."""
        bench.deploy(bench.release("1", fault="fragile"))
        before = bench.server
        assert bench.ask("/die").status_code == 502
        assert bench.serving == "1"
        assert bench.server != before
        assert len([line for line in bench.target.logs(100) if '"ended"' in line]) == 1


class TestBadVersions:
    """A version that cannot serve is removed, says why, and the version before serves."""

    def test_never_ready(self, bench: Bench) -> None:
        """It is given up after the time that the message names."""
        bench.deploy(bench.release("1"))
        bench.change(startup_timeout=3)
        lines: list[str] = []
        with pytest.raises(UnhealthyError, match=r"not ready after 3 s \(/health/ready: 503\)"):
            bench.deploy(bench.release("2", fault="never-ready"), lines.append)
        assert any("waiting for /health/ready: 503" in line for line in lines)
        assert bench.serving == "1"
        assert eventually(lambda: len(bench.processes) == 2)

    def test_crash_at_start(self, bench: Bench) -> None:
        """The message holds the exit code, its last log lines, and what serves."""
        bench.deploy(bench.release("1"))
        with pytest.raises(UnhealthyError) as caught:
            bench.deploy(bench.release("2", fault="crash"))
        assert "ended with code 1 before it was ready" in caught.value.what
        assert "cannot load the model: the planted fault" in caught.value.what
        assert "toy version 1 still serves" in caught.value.next_step

    def test_changed_after_packaging(self, bench: Bench) -> None:
        """A file that is not what the manifest says is refused by name."""
        bench.deploy(bench.release("1"))
        release = bench.release("2")
        (release.package / "scoring" / "server.py").write_text("print('mine now')")
        with pytest.raises(IntegrityError, match="scoring/server.py was changed"):
            bench.deploy(release)
        assert bench.serving == "1"

    def test_another_package_than_planned(self, bench: Bench) -> None:
        """A package that was exchanged whole, between plan and apply, is refused."""
        planned, other = bench.release("1"), bench.release("2")
        with pytest.raises(IntegrityError, match="not the package that was planned"):
            bench.deploy(replace(planned, package=other.package))
        assert bench.target.status() is None

    def test_rollback_to_a_damaged_copy(self, bench: Bench) -> None:
        """The target's own copies are checked as well, each time that one is started."""
        first = bench.release("1")
        bench.deploy(first)
        bench.deploy(bench.release("2"))
        (bench.paths.package(first.package_sha256) / "model" / "model.onnx").write_bytes(b"another")
        with pytest.raises(IntegrityError, match="model/model.onnx was changed"):
            bench.target.rollback(no_question, print)
        assert bench.serving == "2"


class TestBadSurroundings:
    """What the machine may do to a deployment."""

    def test_port_in_use(self, bench: Bench) -> None:
        """The message names the port and the setting; nothing is deployed."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            bench.change(port=port)
            assert [finding.ok for finding in bench.target.diagnose() if "port" in finding.subject] == [False]
            with pytest.raises(UnavailableError) as caught:
                bench.deploy(bench.release("1"))
        assert caught.value.where == f"127.0.0.1:{port}"
        assert "LOCAL_PORT=" in caught.value.next_step
        assert bench.target.status() is None

    def test_no_unix_sockets(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on Windows' drives under WSL: inv doctor and make ci say where MLOPS_HOME can be, before anything runs."""

        class Socket(socket.socket):
            def bind(self, address: Any) -> None:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(socket, "socket", Socket)
        found = next(finding for finding in bench.target.diagnose() if "socket" in finding.subject)
        assert (found.ok, "Operation not supported" in found.detail) == (False, True)
        assert "set MLOPS_HOME" in found.next_step and "/mnt/c" in found.next_step

    def test_default_port_in_use(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without LOCAL_PORT the default is a first choice: a free port takes its place, which is said, and is kept."""
        said: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            monkeypatch.setattr(LocalSettings, "port", port)
            bench.change(port=port)
            found = next(finding for finding in bench.target.diagnose() if "port" in finding.subject)
            assert (found.ok, "takes a free one" in found.detail) == (True, True)
            bench.deploy(bench.release("1"), said.append)
            url = bench.target.endpoint().url
            assert url != f"http://127.0.0.1:{port}"
            assert f"port {port} is in use by another program: the service takes a free one" in said
        bench.deploy(bench.release("2"))
        assert (bench.serving, bench.target.endpoint().url) == ("2", url)

    def test_another_port(self, bench: Bench) -> None:
        """With LOCAL_PORT changed, the same package moves there, and its old port is free again."""
        release = bench.release("1")
        bench.deploy(release)
        before = bench.target.endpoint().url
        bench.change(port=free_port())
        bench.deploy(release)
        assert bench.target.endpoint().url == f"http://127.0.0.1:{bench.settings.local.port}"
        assert bench.serving == "1"
        with pytest.raises(requests.ConnectionError):
            requests.get(before, timeout=60)

    def test_another_port_in_use(self, bench: Bench) -> None:
        """The service stays where it is."""
        bench.deploy(bench.release("1"))
        with socket.create_server(("127.0.0.1", 0)) as other:
            bench.change(port=other.getsockname()[1])
            with pytest.raises(UnavailableError):
                bench.deploy(bench.release("2"))
        assert bench.serving == "1"

    def test_port_taken_while_stopped(self, bench: Bench) -> None:
        """After a crash somebody else has the port: status says so, and another port helps."""
        release = bench.release("1")
        bench.deploy(release)
        port = int(bench.target.endpoint().url.rpartition(":")[2])
        os.kill(bench.supervisor, signal.SIGKILL)
        assert eventually(lambda: bench.processes == [])
        with socket.create_server(("127.0.0.1", port)):
            bench.change(port=port)
            with pytest.raises(UnavailableError):
                bench.deploy(release)
            bench.change(port=0)
            bench.deploy(release)
            assert bench.target.endpoint().url != f"http://127.0.0.1:{port}"
            assert bench.serving == "1"

    def test_full_disk(self, bench: Bench) -> None:
        """The message says so; the version before still answers, and with space again the deployment works."""
        with tmpfs(bench.settings.home, "2m"):
            bench.deploy(bench.release("1"))
            filler = bench.settings.home / "filler"
            fill(filler)
            second = bench.release("2")
            with pytest.raises(UnavailableError, match="No space left"):
                bench.deploy(second)
            assert bench.serving == "1"
            filler.unlink()
            bench.deploy(second)
            assert bench.serving == "2"
            bench.target.undeploy(print)

    def test_disk_that_fills_up_before_the_traffic_moves(self, bench: Bench) -> None:
        """What cannot be written down does not happen: the version before has the traffic, here and after a restart."""
        with tmpfs(bench.settings.home, "2m"):
            bench.deploy(bench.release("1"))
            target, second = bench.target, bench.release("2")
            filler = bench.settings.home / "filler"
            with pytest.raises(UnavailableError, match="No space left"):
                target.apply(target.plan(second), lambda endpoint, package: fill(filler), print)
            status = bench.target.status()
            assert status is not None
            assert (status.model["version"], bench.serving) == ("1", "1")
            filler.unlink()
            bench.target.undeploy(print)

    def test_interrupt_while_a_version_starts(self, bench: Bench) -> None:
        """Ctrl-C in the terminal: the process ends as interrupted, the candidate goes, the version before serves."""
        bench.deploy(bench.release("1"))
        release = bench.release("2", fault="never-ready")
        described = json.dumps({**vars(release), "package": str(release.package)})
        command = [sys.executable, "-c", DEPLOY_AND_DIE, str(bench.settings.home), described, "never"]
        deploying = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        assert eventually(lambda: len(bench.processes) == 4)
        deploying.send_signal(signal.SIGINT)
        _, stderr = deploying.communicate(timeout=60)
        assert b"KeyboardInterrupt" in stderr
        assert eventually(lambda: len(bench.processes) == 2)
        assert bench.serving == "1"

    def test_a_home_with_a_long_name(self, tmp_path: Path) -> None:
        """The control socket works where its path is longer than the system's limit for one."""
        bench = Bench(tmp_path / ("long" * 20) / ("name" * 20))
        bench.deploy(bench.release("1"))
        assert len(str(bench.paths.control)) > 107
        assert bench.serving == "1"
        bench.target.undeploy(print)

    def test_state_that_is_not_ours(self, bench: Bench) -> None:
        """A damaged state file is named, and ``undeploy`` clears it away."""
        bench.paths.directory.mkdir(parents=True)
        bench.paths.state.write_text('{"port": 1}')
        with pytest.raises(IntegrityError, match="state.json") as caught:
            bench.target.status()
        assert "undeploy" in caught.value.next_step
        bench.target.undeploy(print)
        assert bench.target.status() is None

    def test_removed_home(self, bench: Bench) -> None:
        """Whoever removes MLOPS_HOME leaves no process behind."""
        bench.deploy(bench.release("1"))
        supervisor = bench.supervisor
        shutil.rmtree(bench.settings.home)
        assert eventually(lambda: is_gone(supervisor))
        assert eventually(lambda: bench.processes == [])


class TestImports:
    """A task that does not deploy pays nothing for it."""

    def test_libraries_are_imported_when_used(self) -> None:
        """The adapter and the smoke test alone import neither HTTP library nor the lock."""
        code = "import sys, ml_service.smoke, ml_service.targets.local.target; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"aiohttp", "requests", "filelock", "asyncio"} & set(done.stdout.split()) == set()

    def test_targets_open_by_name(self, bench: Bench) -> None:
        """An unknown one is refused with the names of those that exist."""
        assert open_target("local", bench.settings).name == "local"
        with pytest.raises(UsageError, match="unknown target 'mars'") as caught:
            open_target("mars", bench.settings)
        assert "local" in caught.value.next_step


class TestSecrets:
    """Keys are in one file that only this user can read."""

    def test_where_the_keys_are(self, bench: Bench) -> None:
        """Mode 0600 in 0700, in no other file, in no command line, and gone after undeploy."""
        bench.deploy(bench.release("1", fault="tells"))
        keys = bench.target.keys()
        modes = [path.stat().st_mode & 0o777 for path in (bench.paths.keys, bench.paths.keys.parent)]
        assert modes == [0o600, 0o700]
        files = [path for path in bench.settings.home.rglob("*") if path.is_file() and path != bench.paths.keys]
        assert not [path for path in files if keys.primary.encode() in path.read_bytes()]
        assert "my keys are *** and ***" in bench.target.logs(100)
        assert not [pid for pid in bench.processes if keys.primary in _command_line(Path(f"/proc/{pid}"))]
        bench.target.undeploy(print)
        assert not bench.paths.keys.exists()

    def test_credentials_of_the_task_stay_with_the_task(self, bench: Bench) -> None:
        """The scoring process sees what Python needs and SCORING settings, not the variables of the pipeline."""
        secret = "not-for-the-model"
        env = {**bench.settings.env, "SP_APP_SECRET": secret, "SCORING_LOG": "all"}
        bench.settings = replace(bench.settings, env=env)
        bench.deploy(bench.release("1"))
        environment = Path(f"/proc/{bench.server}/environ").read_text()
        assert secret not in environment
        assert "SCORING_LOG=all" in environment

    @pytest.mark.parametrize("word", ["off", "OFF"])
    def test_without_keys_when_asked_for(self, bench: Bench, word: str) -> None:
        """SCORING_AUTH=off: the endpoint has no key, and the smoke test expects none."""
        bench.settings = replace(bench.settings, env={**bench.settings.env, "SCORING_AUTH": word})
        release = bench.release("1")
        bench.deploy(release)
        assert bench.target.endpoint().key == ""
        assert requests.post(f"{bench.target.endpoint().url}/score", json=REQUEST, timeout=60).status_code == 200

    def test_changed_options_are_a_change(self, bench: Bench) -> None:
        """The same package with another number of workers is deployed again; ``previous`` stays what it was."""
        release = bench.release("2")
        bench.deploy(bench.release("1"))
        bench.deploy(release)
        bench.settings = replace(bench.settings, scoring=ScoringSettings(workers=2))
        before = bench.server
        bench.deploy(release)
        assert bench.server != before
        status = bench.target.status()
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
