"""Runs on this machine: rejected, damaged, killed and interrupted."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from ml_service.errors import MlopsError, UnavailableError, UsageError
from ml_service.ports import Build, RunStatus
from ml_service.project import LOCK
from tests.support.local_platform import LocalPlatformEnv, ended
from tests.support.repositories import PROJECT, definition
from tests.support.waiting import wait_until

# A run takes seconds by itself, and many times that where other things run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> LocalPlatformEnv:
    """One store for all; each test has builds and a model of its own."""
    return LocalPlatformEnv(tmp_path_factory.mktemp("runs"))


def test_the_parameters_of_publication_rule_the_gate(env: LocalPlatformEnv) -> None:
    """ALLOW_RUN_CANCEL=false completes and registers nothing; RUN_EVALUATION=false registers without comparing."""
    first = env.train("rules-1", "rules")
    worse = env.train("rules-2", "rules", shift=1.0, allow_run_cancel=False)
    blind = env.train("rules-3", "rules", shift=2.0, run_evaluation=False)
    assert [(run.status, run.registered) for run in (first, worse, blind)] == [
        (RunStatus.COMPLETED, "rules:1"),
        (RunStatus.COMPLETED, ""),
        (RunStatus.COMPLETED, "rules:2"),
    ]
    assert worse.verdict["accept"] is False
    champion = env.platform.champion("rules")
    assert champion is not None
    assert champion.version == "2"


def test_a_lock_that_changed_since_publication_is_refused(tmp_path: Path) -> None:
    """Sources are frozen, libraries are not: a version must not name a lock that it was not trained with."""
    env = LocalPlatformEnv(tmp_path)
    published = env.platform.publish(definition(env.root), Build("b"))
    (env.root / LOCK).write_text("mlflow==0.0.1\n")
    with pytest.raises(UsageError, match="the lock has changed since .* was published") as caught:
        env.platform.submit(published, Build("b"), env.data)
    assert caught.value.where.endswith(LOCK)
    assert not list((env.settings.store / "runs").glob("*"))


def test_a_champion_whose_files_were_damaged_is_an_error_that_says_so(env: LocalPlatformEnv) -> None:
    """Never a silent pass: exit code 8, nothing registered, and withdrawing it is the way out."""
    assert env.train("damaged-1", "damaged", shift=1.0).registered == "damaged:1"
    version = env.platform.version("damaged", "1")
    (damaged,) = (env.settings.store / "artifacts" / version.tags["mlflow_run_id"]).rglob("mean.json")
    damaged.write_text("0")
    run = env.train("damaged-2", "damaged")
    assert (run.status, run.exit_code, run.registered) == (RunStatus.FAILED, 8, "")
    assert "model/mean.json was changed" in run.error
    assert "withdraw damaged:1" in run.error


def test_a_run_killed_while_it_registers_leaves_whole_versions_and_the_next_one_works(env: LocalPlatformEnv) -> None:
    """``kill -9`` of its process after the verdict; other moments are in tests/e2e."""
    name, moment = "killed", "verdict: "
    run = env.submit(f"{name}-1", name)
    wait_until(lambda: moment in env.log(run), f"the run logs {moment!r}", 120)
    os.kill(env.pid(run), signal.SIGKILL)
    killed = env.platform.wait(run, lambda line: None)
    registered = len(env.whole_versions(name))
    if killed.status is RunStatus.FAILED:
        assert "perhaps it was killed" in killed.error
        assert killed.exit_code == 5
    after = env.train(f"{name}-2", name, shift=-1.0 if registered else 0.0)
    assert after.status in (RunStatus.COMPLETED, RunStatus.CANCELED), after.error
    versions = env.whole_versions(name)
    assert len(versions) >= 1
    assert env.platform.champion(name) == versions[-1]


def processes_of(directory: Path) -> list[str]:
    """The command lines of the processes that work on a run; one that has ended has none."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(directory) in line]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="this system does not list its processes in /proc")
def test_an_interrupt_cancels_the_run(env: LocalPlatformEnv) -> None:
    """Ctrl-C ends ``inv train`` with 130, without a traceback; nothing is registered, nothing is left running."""
    name = {"MODEL_NAME": "interrupted", "BUILD_BUILDID": "interrupted"}
    definition(env.root, seconds=600)
    assert ended(env.inv("publish", **name))[0] == 0
    process = env.inv("train", **name)
    wait_until(
        lambda: any("train: " in env.log(run) for run in env.platform.runs(PROJECT, "interrupted")), "it trains", 120
    )
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 130
    assert "Traceback" not in out + err
    (run,) = env.platform.runs(PROJECT, "interrupted")
    assert (run.status, run.error, run.registered) == (RunStatus.FAILED, "was canceled by request", "")
    assert env.whole_versions("interrupted") == []
    assert processes_of(env.directory(run)) == []


# inv ui


def test_the_pages_refuse_a_used_port_and_a_server_of_its_own(env: LocalPlatformEnv, tmp_path: Path) -> None:
    """A server has pages already; exit codes 2 and 5, each with the next step."""
    import io
    import socket

    from ml_service.console import Console
    from ml_service.platforms.local.mlflow_ui import serve

    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"port {port} cannot be used"):
            serve(env.settings, Console(io.StringIO()), port)
    remote = LocalPlatformEnv(tmp_path, create=False, MLFLOW_TRACKING_URI="https://tracking.example")
    with pytest.raises(MlopsError, match="open its address in a browser"):
        serve(remote.settings, Console(io.StringIO()), 0)
