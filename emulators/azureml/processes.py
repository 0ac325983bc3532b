"""Start a step's process: a new interpreter, or a fork of one that has imported the SDK already."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""


class Process(Protocol):
    """A step that runs. ``code`` is None until it has ended."""

    @property
    def code(self) -> int | None: ...

    def end(self) -> None: ...


class Starter(Protocol):
    """Starts ``python ARGUMENTS`` in ``folder`` with just ``environment``; its output goes to ``log``."""

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Process: ...

    def close(self) -> None: ...


class NewInterpreter:
    """A new interpreter for each step, as on a cluster."""

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Process:
        with log.open("ab") as output:
            return _Started(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=folder,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def close(self) -> None:
        """There is nothing to close."""


class _Started:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        _end_group(self._process.pid, lambda: self._process.poll() is not None)


class ForkServer:
    """Forks of one process that has imported the SDK: the same steps, three seconds faster each."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AZUREML_")}
        self._forkserver = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("forkserver.py"))],
            env={**inherited, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._numbers = itertools.count()
        self._forks: dict[str, _Fork] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Process:
        fork = _Fork()
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": dict(environment),
            "log": str(log),
        }
        with self._lock:
            identifier = str(next(self._numbers))
            self._forks[identifier] = fork
            assert self._forkserver.stdin is not None
            self._forkserver.stdin.write(json.dumps({"id": identifier, **request}).encode() + b"\n")
            self._forkserver.stdin.flush()
        return fork

    def _listen(self) -> None:
        assert self._forkserver.stdout is not None
        for line in self._forkserver.stdout:
            response = json.loads(line)
            self._forks[response["id"]].update(response.get("pid"), response.get("code"))
        for fork in self._forks.values():
            fork.update(None, -signal.SIGKILL if fork.code is None else fork.code)

    def close(self) -> None:
        """End the fork server. The steps have ended before."""
        assert self._forkserver.stdin is not None
        self._forkserver.stdin.close()
        self._forkserver.wait(timeout=30)


class _Fork:
    def __init__(self) -> None:
        self._pid: int | None = None
        self._started = threading.Event()
        self.code: int | None = None

    def update(self, pid: int | None, code: int | None) -> None:
        if code is not None:
            self.code = code
        self._pid = pid or self._pid
        self._started.set()

    def end(self) -> None:
        self._started.wait(60)
        if self._pid:
            _end_group(self._pid, lambda: self.code is not None)


def _end_group(pid: int, has_ended: Callable[[], bool]) -> None:
    """End a step and all that it started, with SIGTERM and after the grace period with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + _GRACE
        while not has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
    # A process that the step started may outlive it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
