"""The supervisor: binds the address, keeps worker processes running and passes signals on.

It never touches a request and imports nothing large. Workers are forked from it, so that starting one costs little and
none inherits the threads and memory of libraries. It exits with 0 after SIGTERM or SIGINT, 4 if a setting or a library
is missing or invalid, 5 if the address is already in use or not permitted, 8 if the package is invalid.
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

from scoring_service.errors import ConfigurationError, StartError, UnavailableError, import_failure
from scoring_service.json_log import JsonLog
from scoring_service.keys import KeyRing, read_file, take_from_env
from scoring_service.metrics import SharedMetrics
from scoring_service.settings import Settings
from scoring_service.signals import SignalPipe

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_MAX_PAUSE = 10.0
"""Longest wait, in seconds, before a worker that keeps failing is started again."""
_LONG_LIFE = 10.0
"""A worker that ran for more seconds than this did not fail at its start: its successor starts at once."""
_KILL_AFTER = 3.0
"""Seconds beyond the drain timeout after which a worker that has not exited is killed."""


@dataclass
class Child:
    """A worker process and the time (``time.monotonic``) of its start."""

    pid: int
    started: float


class Supervisor:
    """Keep the workers running: replace one that exits, kill one that hangs, pass signals on."""

    def __init__(self, settings: Settings, listener: socket.socket, keys: KeyRing, shared: SharedMetrics) -> None:
        self._settings = settings
        self._listener = listener
        self._socket_id = os.stat(settings.socket).st_ino if settings.socket else 0
        self._keys = keys
        self._shared = shared
        self._log = JsonLog(1, lambda lines: shared.workers[0].add("log_lines_dropped", lines))
        self._children: dict[int, Child] = {}
        self._due: dict[int, float] = {}
        self._failures = [0] * settings.workers
        self._was_ready = False
        self._signals = SignalPipe(_SIGNALS)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. Return the exit code."""
        for index in range(self._settings.workers):
            self._fork(index)
        while True:
            self._log.flush()
            received = self._signals.wait(0.25)
            if received & {signal.SIGTERM, signal.SIGINT}:
                return self._stop(0)
            if signal.SIGHUP in received or self._keys.has_changed():
                self._reload_keys()
            if signal.SIGHUP in received:
                self._send(signal.SIGHUP)
            code = self._replace_exited()
            if code:
                return self._stop(code)
            self._kill_hanging()

    def _reload_keys(self) -> None:
        """Read the keys again, so that a worker forked later starts with them. Workers log their own reload."""
        try:
            self._keys.reload()
        except ConfigurationError as error:
            self._log.event("error", "keys_not_reloaded", where=error.where, text=error.what)

    def _fork(self, index: int) -> None:
        """Start the worker ``index``."""
        self._shared.workers[index].reset_gauges()
        self._log.flush()
        supervisor = os.getpid()
        pid = self._signals.fork()
        if pid == 0:
            code = 1
            try:
                code = self._work(index, supervisor)
            finally:
                os._exit(code)
        self._children[index] = Child(pid, time.monotonic())

    def _work(self, index: int, supervisor: int) -> int:
        # SIGHUP stays blocked until the worker can handle it: it would kill one that is still loading its model.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number for number in _SIGNALS if number != signal.SIGHUP])
        metrics = self._shared.workers[index]
        log = JsonLog(1, lambda lines: metrics.add("log_lines_dropped", lines))
        # Imported here: with the libraries in this process, every worker would be forked with their threads and memory.
        try:
            from scoring_service.worker import Worker, start
        except ImportError as error:
            return refuse(import_failure(error))
        parts = (self._listener, self._keys, self._shared, log)
        return start(lambda: Worker(self._settings, index, supervisor, *parts).run(), log)

    def _replace_exited(self) -> int:
        """Start the workers that are due. Return an exit code if the very first start has failed, else 0."""
        now = time.monotonic()
        self._was_ready = self._was_ready or any(worker.get("ready") for worker in self._shared.workers)
        for index, code in self._exited():
            child = self._children.pop(index)
            if not self._was_ready and code > 0:
                return code
            self._note_loss(index, code, now - child.started)
        for index in [index for index, due in self._due.items() if due <= now]:
            del self._due[index]
            self._fork(index)
        return 0

    def _exited(self) -> Iterable[tuple[int, int]]:
        """Yield the index and exit code (negative: a signal) of each worker that has exited.

        As process 1 of a container it also reaps orphans.
        """
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
        """Schedule the successor of a worker that has exited after ``lived`` seconds: at once, or after a pause."""
        self._failures[index] = 0 if lived > _LONG_LIFE else self._failures[index] + 1
        pause = min(_MAX_PAUSE, 0.25 * 2 ** self._failures[index]) if self._failures[index] > 1 else 0.0
        self._due[index] = time.monotonic() + pause
        metrics = self._shared.workers[index]
        metrics.reset_gauges()
        metrics.add("restarts")
        self._log.event("error", "worker_lost", worker=index, exit_code=code, again_in=pause)

    def _kill_hanging(self) -> None:
        """Kill a worker whose event loop has not run for longer than any request may take."""
        limit = 2 * self._settings.timeout + 10
        for index, child in self._children.items():
            beat = self._shared.workers[index].get("heartbeat")
            if beat and time.monotonic() - beat > limit:
                self._log.event("error", "worker_stuck", worker=index)
                _kill(child.pid, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for child in self._children.values():
            _kill(child.pid, number)

    def _stop(self, code: int) -> int:
        """Let the workers drain, kill those that do not exit in time. Return ``code``."""
        self._listener.close()
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_timeout + _KILL_AFTER
        while self._children and time.monotonic() < deadline:
            for index, _ in self._exited():
                del self._children[index]
            if self._children:
                self._signals.wait(0.05)
        self._send(signal.SIGKILL)
        self._remove_socket()
        self._log.event("info", "stopped", workers_killed=len(self._children), exit_code=code)
        self._log.flush()
        return code

    def _remove_socket(self) -> None:
        """Remove the socket's path, unless another service has bound its own socket there."""
        with contextlib.suppress(OSError):
            if self._socket_id and os.stat(self._settings.socket).st_ino == self._socket_id:
                os.unlink(self._settings.socket)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def read_keys(settings: Settings) -> KeyRing:
    """Return the keys of the service.

    Raises:
        ConfigurationError: there are none, and SCORING_AUTH is not off; or they are invalid.
    """
    if not settings.auth:
        return KeyRing(None, "")
    ring = KeyRing(None, settings.keys_file)  # before the file is read: a change from now on is noticed
    ring.keys = read_file(settings.keys_file) if settings.keys_file else take_from_env(os.environ)
    return ring


def bind(settings: Settings) -> socket.socket:
    """Return the bound socket. It starts to listen when the first worker is ready.

    Raises:
        UnavailableError: the address is in use, not permitted or not one of this machine.
    """
    try:
        return _bind_path(settings.socket) if settings.socket else _bind_port(settings.host, settings.port)
    except OSError as error:
        where = settings.socket or f"{settings.host}:{settings.port}"
        next_step = "choose another with SCORING_SOCKET" if settings.socket else "choose another with SCORING_PORT"
        what = f"cannot listen here ({error.strerror or error})"
        raise UnavailableError(what, where=where, next_step=next_step) from None


def _bind_port(host: str, port: int) -> socket.socket:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


def _bind_path(path: str) -> socket.socket:
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode) and _is_orphan(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o660)
    return listener


def _is_orphan(path: str) -> bool:
    """Return whether nobody listens on the socket: the service that made it was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)  # a full queue also means that somebody listens
        return client.connect_ex(path) == errno.ECONNREFUSED


def main() -> int:
    """Start the service with the settings in the environment. Return the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # keys may be rotated while the service starts
    try:
        settings = Settings.from_env(os.environ)
        keys = read_keys(settings)
        listener = bind(settings)
    except StartError as error:
        return refuse(error)
    shared = SharedMetrics(settings.workers)
    address = settings.socket or "{}:{}".format(*listener.getsockname()[:2])
    log = JsonLog(1, lambda lines: None)
    log.event("info", "starting", address=address, workers=settings.workers, pid=os.getpid(), auth=settings.auth)
    if not settings.auth:
        log.event("warning", "no_keys", text="SCORING_AUTH=off: anybody who can reach this address is served")
    log.flush()
    return Supervisor(settings, listener, keys, shared).run()


def refuse(error: StartError) -> int:
    """Print and log why the service does not start. Return the exit code."""
    print(error, file=sys.stderr)
    log = JsonLog(1, lambda lines: None)
    log.event("error", "start_failed", where=error.where, text=error.what, next=error.next_step)
    log.flush()
    return error.exit_code
