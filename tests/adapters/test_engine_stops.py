"""An engine that dies in the middle of a build: a second one of the test's own, so that nobody else loses theirs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ml_service.console import Console
from ml_service.errors import UnavailableError
from ml_service.images.build import build
from tests.support.releases import make_artifact
from tests.support.services import engine_or_skip
from tests.support.settings import settings_for

pytestmark = pytest.mark.docker

BASE = "python:3.11-slim-bookworm"


@dataclass
class Engine:
    """A dockerd without network, with the base image."""

    process: subprocess.Popen[bytes]
    address: str


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine_or_skip().close()
    if os.geteuid() != 0 or shutil.which("dockerd") is None or shutil.which("unshare") is None:
        pytest.skip("a second engine needs dockerd and unshare on PATH, and root")
    # A socket's path is short, and pytest's folders are not.
    directory = Path("/tmp") / f"engine-{uuid.uuid4().hex[:8]}"
    directory.mkdir()
    address = f"unix://{directory}/docker.sock"
    options = ["--host", address, "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")]
    # In a network namespace of its own: without one it would remove the first engine's bridge.
    options += ["--pidfile", str(directory / "pid"), "--bridge=none", "--iptables=false"]
    with (directory / "log").open("wb") as log:
        command = ["unshare", "--net", "dockerd", *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _load_base(address)
        yield Engine(process, address)
    finally:
        _remove(process, directory)


def _remove(process: subprocess.Popen[bytes], directory: Path) -> None:
    """What a killed engine leaves: the containerd that it started, and mounts."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(directory, ignore_errors=True)


def _load_base(address: str) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(["docker", "--host", address, "info"], capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            pytest.skip("a second engine does not start on this machine")
        time.sleep(0.2)
    with subprocess.Popen(["docker", "save", BASE], stdout=subprocess.PIPE) as saving:
        subprocess.run(["docker", "--host", address, "load"], stdin=saving.stdout, check=True, capture_output=True)


class KillsAtStep(Console):
    """A console that kills the engine when the build reaches a step."""

    def __init__(self, engine: Engine, step: str) -> None:
        super().__init__(open(os.devnull, "w"))  # noqa: SIM115
        self._engine = engine
        self._step = step

    def progress(self, text: str) -> None:
        if self._step in text:
            self._engine.process.send_signal(signal.SIGKILL)
            self._engine.process.wait()


def test_an_engine_that_stops_while_building(engine: Engine, tmp_path: Path) -> None:
    """Exit code 5, saying that it went away; there is no image.json that promises an image."""
    artifact = make_artifact(tmp_path)
    settings = settings_for(tmp_path / "home", DOCKER_HOST=engine.address)
    with pytest.raises(UnavailableError, match="went away in the middle"):
        build(settings, KillsAtStep(engine, "RUN"), artifact=artifact, push=False)
    assert not (artifact / "image.json").exists()
