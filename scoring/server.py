"""The scoring service: ``python server.py`` with the settings of docs/scoring.md in the environment.

This process binds the address and keeps workers running; it imports nothing large and never touches a request. It ends
with 0 after SIGTERM or SIGINT, 4 when a setting is wrong, 5 when the address cannot be had, 8 when the package is not
sound.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from scoring_service.errors import ConfigurationError, StartError, UnavailableError
from scoring_service.json_log import Journal
from scoring_service.keys import KeyRing, read_file, take_from_env
from scoring_service.metrics import SharedMetrics
from scoring_service.settings import Settings

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_MOST_PAUSE = 10.0
_LONG_LIFE = 10.0


@dataclass
class Child:
    """A worker process, and when it was started."""

    pid: int
    started: float


class Supervisor:
    """Keeps the workers running: replaces a lost one, ends one that has stopped moving, passes signals on."""

    def __init__(self, settings: Settings, listener: socket.socket, keys: KeyRing, shared: SharedMetrics) -> None:
        self._settings = settings
        self._listener = listener
        self._socket_id = os.stat(settings.socket).st_ino if settings.socket else 0
        self._keys = keys
        self._shared = shared
        self._journal = Journal(1, lambda lines: shared.workers[0].add("log_lines_dropped", lines))
        self._children: dict[int, Child] = {}
        self._due: dict[int, float] = {}
        self._failures = [0] * settings.workers
        self._was_ready = False

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for index in range(self._settings.workers):
            self._fork(index)
        while True:
            self._journal.flush()
            received = signal.sigtimedwait(_SIGNALS, 0.25)
            number = received.si_signo if received else None
            if number in (signal.SIGTERM, signal.SIGINT):
                return self._stop(0)
            if number == signal.SIGHUP or self._keys.has_changed():
                self._reload_keys()
            if number == signal.SIGHUP:
                self._send(signal.SIGHUP)
            code = self._replace_lost()
            if code:
                return self._stop(code)
            self._end_stuck()

    def _reload_keys(self) -> None:
        """Follow the file as the workers do: one that is forked later starts with what is known here. They say so."""
        try:
            self._keys.reload()
        except ConfigurationError as error:
            self._journal.event("error", "keys_not_reloaded", where=error.where, text=error.what)

    def _fork(self, index: int) -> None:
        """Start the worker ``index``. Forking this small process early costs less than starting Python anew."""
        self._shared.workers[index].reset_gauges()
        self._journal.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = self._work(index)
            finally:
                os._exit(code)
        self._children[index] = Child(pid, time.monotonic())

    def _work(self, index: int) -> int:
        # SIGHUP waits until the worker can handle it: it would end one that is still loading its model.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number for number in _SIGNALS if number != signal.SIGHUP])
        metrics = self._shared.workers[index]
        journal = Journal(1, lambda lines: metrics.add("log_lines_dropped", lines))
        # Imported here: with the libraries in this process, every worker would be forked with their threads and memory.
        try:
            from scoring_service.worker import Worker, start
        except ImportError as error:
            next_step = "install requirements.txt beside server.py (requirements/scoring.txt of the repository)"
            return refuse(ConfigurationError(f"a library is missing ({error})", where=__file__, next_step=next_step))
        return start(
            lambda: Worker(self._settings, index, self._listener, self._keys, self._shared, journal).run(), journal
        )

    def _replace_lost(self) -> int:
        """Note who is gone and start who is due; the exit code when the very first start has failed."""
        now = time.monotonic()
        self._was_ready = self._was_ready or any(worker.get("ready") for worker in self._shared.workers)
        for index, code in self._ended():
            child = self._children.pop(index)
            if not self._was_ready and code > 0:
                return code
            self._note_loss(index, code, now - child.started)
        for index in [index for index, due in self._due.items() if due <= now]:
            del self._due[index]
            self._fork(index)
        return 0

    def _ended(self) -> Iterable[tuple[int, int]]:
        """Workers that have ended, with their exit codes (negative: a signal). As process 1 it also buries orphans."""
        by_pid = {child.pid: index for index, child in self._children.items()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:
                yield by_pid[pid], os.waitstatus_to_exitcode(status)

    def _note_loss(self, index: int, code: int, lived: float) -> None:
        self._failures[index] = 0 if lived > _LONG_LIFE else self._failures[index] + 1
        pause = min(_MOST_PAUSE, 0.25 * 2 ** self._failures[index]) if self._failures[index] > 1 else 0.0
        self._due[index] = time.monotonic() + pause
        metrics = self._shared.workers[index]
        metrics.reset_gauges()
        metrics.add("restarts")
        self._journal.event("error", "worker_lost", worker=index, exit_code=code, again_in=pause)

    def _end_stuck(self) -> None:
        """Kill a worker whose event loop has not turned for longer than any request may take."""
        limit = 2 * self._settings.timeout + 10
        for index, child in self._children.items():
            beat = self._shared.workers[index].get("heartbeat")
            if beat and time.monotonic() - beat > limit:
                self._journal.event("error", "worker_stuck", worker=index)
                _kill(child.pid, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for child in self._children.values():
            _kill(child.pid, number)

    def _stop(self, code: int) -> int:
        """Let the workers drain; kill those that are not done in time."""
        self._listener.close()
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_timeout + 3
        while self._children and time.monotonic() < deadline:
            for index, _ in self._ended():
                del self._children[index]
            if self._children:
                signal.sigtimedwait((signal.SIGCHLD,), 0.05)
        self._send(signal.SIGKILL)
        self._remove_socket()
        self._journal.event("info", "stopped", workers_killed=len(self._children), exit_code=code)
        self._journal.flush()
        return code

    def _remove_socket(self) -> None:
        """Take the socket's path away, unless another service has put its own there."""
        with contextlib.suppress(OSError):
            if self._socket_id and os.stat(self._settings.socket).st_ino == self._socket_id:
                os.unlink(self._settings.socket)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def read_keys(settings: Settings) -> KeyRing:
    """The keys of the service; raises ConfigurationError when there are none and nobody asked for that."""
    if not settings.auth:
        return KeyRing(None, "")
    ring = KeyRing(None, settings.keys_file)  # before the file is read: a change from now on is noticed
    ring.keys = read_file(settings.keys_file) if settings.keys_file else take_from_env(os.environ)
    return ring


def bind(settings: Settings) -> socket.socket:
    """The bound socket; it starts to listen when the first worker is ready. Raises UnavailableError."""
    try:
        return _bind_path(settings.socket) if settings.socket else _bind_port(settings.host, settings.port)
    except OSError as error:
        where = settings.socket or f"{settings.host}:{settings.port}"
        next_step = "choose another with SCORING_SOCKET" if settings.socket else "choose another with SCORING_PORT"
        what = f"cannot listen here ({error.strerror or error})"
        raise UnavailableError(what, where=where, next_step=next_step) from None


def _bind_port(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


def _bind_path(path: str) -> socket.socket:
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode) and _is_left_behind(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o660)
    return listener


def _is_left_behind(path: str) -> bool:
    """Whether the socket is that of a service that was killed: nobody listens any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)  # a full queue is somebody's, too
        return client.connect_ex(path) == errno.ECONNREFUSED


def main() -> int:
    """Start the service; returns the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # keys may be rotated while the service starts
    try:
        settings = Settings.from_env(os.environ)
        keys = read_keys(settings)
        listener = bind(settings)
    except StartError as error:
        return refuse(error)
    shared = SharedMetrics(settings.workers)
    address = settings.socket or "{}:{}".format(*listener.getsockname()[:2])
    journal = Journal(1, lambda lines: None)
    journal.event("info", "starting", address=address, workers=settings.workers, pid=os.getpid(), auth=settings.auth)
    if not settings.auth:
        journal.event("warning", "no_keys", text="SCORING_AUTH=off: everybody who reaches this address is answered")
    journal.flush()
    return Supervisor(settings, listener, keys, shared).run()


def refuse(error: StartError) -> int:
    """Say why the service does not start; returns the exit code."""
    print(error, file=sys.stderr)
    journal = Journal(1, lambda lines: None)
    journal.event("error", "start_failed", where=error.where, text=error.what, next=error.next_step)
    journal.flush()
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
