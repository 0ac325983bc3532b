"""What the local platform makes of bad luck: kills at any moment, a full disk, a server that does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_service.ports import RunStatus
from tests.support.local_platform import LocalPlatformEnv, ended
from tests.support.repositories import PROJECT
from tests.support.waiting import wait_until

# A run takes seconds by itself, and many times that where other things run.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("moment", ["", "train: ", "trained", "verdict: "])
def test_a_run_killed_at_any_moment_on_an_empty_store_leaves_it_usable(tmp_path: Path, moment: str) -> None:
    """``kill -9`` of its process: as soon as it runs, while it trains, before the gate, and while it registers."""
    env = LocalPlatformEnv(tmp_path, create=False)
    run = env.submit("1", shift=1.0)
    wait_until(lambda: moment in env.log(run), f"the run logs {moment!r}", 120)
    os.kill(env.pid(run), signal.SIGKILL)
    env.platform.wait(run, lambda line: None)
    after = env.train("2")
    assert after.status is RunStatus.COMPLETED, after.error
    versions = env.whole_versions()
    assert env.platform.champion(PROJECT) == versions[-1]
    assert versions[-1].reference == after.registered


def test_a_run_goes_on_when_the_task_that_waits_is_killed(tmp_path: Path) -> None:
    """``kill -9`` of ``inv train``: check-model takes the run up, and the model is registered once."""
    env = LocalPlatformEnv(tmp_path)
    name = {"MODEL_NAME": "orphan", "BUILD_BUILDID": "orphan"}
    assert ended(env.inv("publish", **name))[0] == 0
    process = env.inv("train", **name)
    wait_until(lambda: env.platform.runs(PROJECT, "orphan"), "there is a run", 120)
    process.kill()
    ended(process)
    code, out, err = ended(env.inv("check-model", **name))
    assert (code, err) == (0, "")
    assert "Model orphan:1 was registered for this run." in out
    assert len(env.whole_versions("orphan")) == 1


def test_a_server_that_does_not_answer_fails_the_run_in_bounded_time(tmp_path: Path) -> None:
    """Exit code 5, with the address and without its password; doctor says it beforehand."""
    env = LocalPlatformEnv(tmp_path, create=False, MLFLOW_TRACKING_URI="http://user:s3cret@127.0.0.1:9")
    assert ended(env.inv("publish", "--build-id", "1"))[0] == 0
    code, out, err = ended(env.inv("train", "--build-id", "1"), seconds=150)
    assert code == 5, out + err
    assert "127.0.0.1:9" in err
    assert "s3cret" not in out + err
    assert "Traceback" not in out + err
    assert [finding.subject for finding in env.platform.diagnose() if not finding.ok] == ["tracking store"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted disk of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine may not mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leave ``left`` bytes on the disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    path = disk / "filler"
    path.write_bytes(bytes(max(0, free - left)))
    return path


@pytest.mark.parametrize("created, left", [(False, 0), (False, 400_000), (True, 100_000)])
def test_a_full_disk_is_told_and_leaves_nothing_half_registered(
    tmp_path: Path, small_disk: Path, created: bool, left: int
) -> None:
    """Exit code 5: while publishing, while the store is created, while the run writes; with room the build trains."""
    env = LocalPlatformEnv(
        tmp_path / "repository", create=created, MLOPS_HOME=str(small_disk / "home"), BUILD_BUILDID="1"
    )
    filler = fill(small_disk, left)
    code, out, err = ended(env.inv("publish", "train"))
    assert code == 5, out + err
    assert "No space left on device" in err or "full" in err, err
    assert "Traceback" not in out + err
    filler.unlink()
    code, out, err = ended(env.inv("publish", "train"))
    assert code == 0, out + err
    assert [version.version for version in env.whole_versions()] == ["1"]
