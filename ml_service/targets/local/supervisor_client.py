"""The client of the supervisor: how a task reaches it, starts it and sends it commands."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ml_service.errors import UnavailableError
from ml_service.targets.local.state import Paths

_ROOT = Path(__file__).resolve().parents[3]

_INHERITED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_", "LD_LIBRARY_PATH", "OMP_", "OPENBLAS_", "COVERAGE_")
"""Beginnings of the names of the variables that the supervisor and its servers get from the task: what Python needs,
and no credentials."""

_LONGEST_SOCKET_PATH = 100
"""Bytes; the system's own limit is 107 on Linux, 103 on macOS."""

_END_TIMEOUT = 60.0

_working_directory = threading.Lock()


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Give an address for the socket at ``path`` that fits the system's limit, for as long as the block lasts."""
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        yield str(path)
    elif sys.platform == "linux":
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{directory}/{path.name}"
        finally:
            os.close(directory)
    else:
        with _inside(path.parent):
            yield path.name


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    with _working_directory:
        before = os.getcwd()
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(before)


class CommandRefused(Exception):
    """The supervisor's answer to a command that it could not carry out.

    ``kind`` is ``port``, ``unhealthy``, ``integrity`` or ``unavailable``; ``log`` holds the candidate's last log lines.
    """

    def __init__(self, kind: str, message: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.log = log


class SupervisorGone(Exception):
    """No supervisor listens, or it ended in the middle of a command."""


class SupervisorClient:
    """A conversation with the supervisor over its unix socket, one JSON object a line.

    The supervisor removes a candidate that does not serve when the conversation that started it ends. So a task that
    is killed leaves no candidate behind.

    Raises:
        SupervisorGone: no supervisor listens.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_address(path) as address:
                self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise SupervisorGone(str(error)) from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> SupervisorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; the supervisor removes a candidate that does not serve yet."""
        self._lines.close()
        self._socket.close()

    def ask(self, command: str, *, progress: Callable[[str], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Send ``command`` and return its answer; pass lines of progress to ``progress`` meanwhile.

        Raises:
            CommandRefused: the supervisor says why it could not.
            SupervisorGone: it went away before it answered.
        """
        try:
            self._socket.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            while line := self._lines.readline():
                answer: dict[str, Any] = json.loads(line)
                if "progress" not in answer:
                    return _accepted(answer)
                if progress is not None:
                    progress(answer["progress"])
        except OSError as error:
            raise SupervisorGone(str(error)) from None
        raise SupervisorGone(f"it ended before it answered {command!r}")


def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise CommandRefused(answer["error"], answer["message"], tuple(answer.get("log", ())))
    return answer


def connect_or_start(paths: Paths, env: Mapping[str, str], progress: Callable[[str], None]) -> SupervisorClient:
    """Return a conversation with a supervisor that can start servers; start one when there is none.

    A supervisor outlives an update of the code that it was started from. When the update moved the watchdog, the
    supervisor can start no server any more, so it is ended and a new one takes over what it served.

    Raises:
        UnavailableError: one does not start, or does not end.
    """
    with suppress(SupervisorGone):
        client = SupervisorClient(paths.control)
        status = client.ask("status")
        if _can_start_servers(status):
            return client
        client.close()
        _end_outdated(paths, int(status["pid"]), progress)
    _start(paths, env)
    return SupervisorClient(paths.control)


def _can_start_servers(status: Mapping[str, Any]) -> bool:
    """Supervisors of the time before the watchdog had its name do not say where it is."""
    return Path(status.get("watchdog", "")).is_file()


def _end_outdated(paths: Paths, pid: int, progress: Callable[[str], None]) -> None:
    """Have the supervisor answer the requests that it has and end. Its state stays, so the next one serves the same."""
    progress("its supervisor was started before an update: a new one takes over, in a few seconds")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    with no_supervisor(paths):
        pass


def _start(paths: Paths, env: Mapping[str, str]) -> None:
    """Start a supervisor in a session of its own and wait for its line of JSON: its pid, or why it did not start."""
    paths.logs.mkdir(exist_ok=True)
    with (paths.logs / "supervisor.err").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "ml_service.targets.local.supervisor", str(paths.home)],
            cwd=_ROOT,
            env={name: value for name, value in env.items() if name.startswith(_INHERITED)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    answer = json.loads(line) if line else {"message": f"see {paths.logs / 'supervisor.err'}"}
    if "message" in answer:
        process.wait()
        raise UnavailableError(
            f"its supervisor did not start: {answer['message']}",
            where="target local",
            next_step="run the command again",
        )


@contextmanager
def no_supervisor(paths: Paths) -> Iterator[None]:
    """Wait until the supervisor has ended, and let none start for as long as the block lasts.

    Raises:
        UnavailableError: one runs, but does not end.
    """
    import filelock

    try:
        with filelock.FileLock(paths.supervisor_lock, timeout=_END_TIMEOUT):
            yield
    except filelock.Timeout:
        raise UnavailableError(
            "its supervisor runs, but cannot be reached",
            where=str(paths.control),
            next_step=f"end it: fuser -k {paths.supervisor_lock}",
        ) from None
