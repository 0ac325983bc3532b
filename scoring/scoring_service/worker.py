"""One worker process: an event loop that serves the connections it takes from the shared listening socket."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from scoring_service.errors import ConfigurationError, StartError, UnavailableError
from scoring_service.executor import ThreadExecutor
from scoring_service.http.app import Service
from scoring_service.http.protocol import Connection
from scoring_service.json_log import JsonLog, JsonLogStream
from scoring_service.keys import KeyRing
from scoring_service.metrics import SharedMetrics
from scoring_service.model.scorer import Scorer, load
from scoring_service.settings import Settings

BACKLOG = 2048
STUCK = 70
"""Exit code of a worker whose model did not return."""

_TICK = 1.0
_ACCEPT_PAUSE = 0.001
"""Seconds for which a worker leaves a new connection to a worker that has fewer."""
_MAX_ACCEPT_PAUSES = 10
"""After so many pauses in a row the worker accepts the connection itself: the others may be busy."""
_DESCRIPTOR_PAUSE = 0.5
_ACCEPT_LOG_INTERVAL = 60.0
"""Seconds between two log lines that say that connections cannot be accepted."""


class Worker:
    """Load the model, then serve until SIGTERM."""

    def __init__(
        self,
        settings: Settings,
        index: int,
        supervisor: int,
        listener: socket.socket,
        keys: KeyRing,
        shared: SharedMetrics,
        log: JsonLog,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._keys = keys
        self._shared = shared
        self._metrics = shared.workers[index]
        self._log = log
        self._supervisor = supervisor
        self._pauses = 0
        self._is_paused = False
        self._log_accept_after = 0.0
        self._accepting: set[asyncio.Task[object]] = set()
        self._drain_until = 0.0
        self._close_idle_at = 0.0
        self._exit_code = 0

    def run(self) -> int:
        """Serve. Return the exit code.

        Raises:
            StartError: the package is invalid, or another service listens on the address.
        """
        _allow_many_connections()
        sys.stdout = sys.stderr = JsonLogStream(lambda text: self._log.event("info", "output", text=text))
        scorer = load(self._settings.package, self._settings.max_rows, self._settings.threads)
        return uvloop.run(self._serve(scorer))

    async def _serve(self, scorer: Scorer) -> int:
        self._loop = loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        sys.stdout = sys.stderr = JsonLogStream(self._log_output_later)
        executor = self._executor(scorer)
        self._service = Service(self._settings, scorer, executor, self._keys, self._log, self._metrics, self._shared)
        loop.set_exception_handler(self._log_failure)
        _warm_up(scorer, executor)
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGHUP, self._reload_keys)
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, [signal.SIGHUP]
        )  # a signal that came during the start is handled now
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides, and sends SIGTERM
        self._listener.setblocking(False)
        self._listen()
        loop.add_reader(self._listener.fileno(), self._accept)
        self._metrics.set("pid", os.getpid())
        self._metrics.set("ready", 1)
        package = scorer.package
        self._log.event("info", "ready", worker=os.getpid(), model=package.name, version=package.version)
        self._tick()
        self._write_log()
        await self._stopped.wait()
        cut = self._service.cut + len(self._service.connections)
        self._log.event("info", "stopped", worker=os.getpid(), connections_cut=cut)
        for connection in list(self._service.connections):
            connection.abort()
        self._log.flush()
        return self._exit_code

    def _listen(self) -> None:
        """Start to listen. Another service may have done so since the address was bound."""
        try:
            self._listener.listen(BACKLOG)
        except OSError as error:
            where = self._settings.socket or f"{self._settings.host}:{self._settings.port}"
            next_step = "end the other service, or choose another SCORING_PORT"
            raise UnavailableError(f"cannot listen here ({error.strerror})", where=where, next_step=next_step) from None

    def _executor(self, scorer: Scorer) -> ThreadExecutor:
        settings = self._settings
        return ThreadExecutor(
            scorer.score,
            scorer.cancel,
            self._on_stuck,
            max_queue=settings.max_queue,
            queue_timeout=settings.queue_timeout,
            timeout=settings.timeout,
        )

    # Connections

    def _accept(self) -> None:
        """Accept one connection, unless another worker has fewer and is free to accept it."""
        if self._has_more_than_others() and self._pauses < _MAX_ACCEPT_PAUSES:
            self._pauses += 1
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(_ACCEPT_PAUSE, self._accept_again)
            return
        self._pauses = 0
        self._accept_one()

    def _accept_one(self) -> bool:
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:  # no more descriptors: some will become free
            self._pause_accepting(error)
            return False
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        self._metrics.add("connections")
        task: asyncio.Task[object] = self._loop.create_task(self._connect(connected))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
        return True

    def _pause_accepting(self, error: OSError) -> None:
        """Try again later. The connection stays in the queue, where it would wake up the event loop all the time."""
        if self._is_paused:
            return
        self._is_paused = True
        if self._service.now >= self._log_accept_after:
            self._log_accept_after = self._service.now + _ACCEPT_LOG_INTERVAL
            self._log.event("error", "accept_failed", text=str(error), again_in=_DESCRIPTOR_PAUSE)
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(_DESCRIPTOR_PAUSE, self._accept_again)

    async def _connect(self, connected: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Connection(self._service), connected)
        except OSError:  # the client disconnected before it was accepted
            connected.close()

    def _accept_again(self) -> None:
        self._is_paused = False
        if self._listener.fileno() >= 0 and not self._service.draining:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _has_more_than_others(self) -> bool:
        mine = self._metrics.get("connections")
        others = (worker for worker in self._shared.workers if worker is not self._metrics and worker.get("ready"))
        return any(worker.get("connections") < mine for worker in others)

    # Periodic

    def _tick(self) -> None:
        """Run the housekeeping once a second. Errors are logged and do not stop the timer."""
        try:
            self._keep_house()
        finally:
            self._loop.call_later(_TICK, self._tick)

    def _keep_house(self) -> None:
        """Enforce the timeouts of connections, reload changed keys, drain if the supervisor has exited."""
        service = self._service
        service.tick()
        self._metrics.set("heartbeat", service.now)
        for connection in list(service.connections):
            connection.check(service.now)
        if self._keys.has_changed():
            self._reload_keys()
        if os.getppid() != self._supervisor and not service.draining:
            self._drain()

    def _write_log(self) -> None:
        """Write the log every 20 ms: in batches, and soon enough."""
        self._log.flush()
        self._loop.call_later(0.02, self._write_log)

    def _log_output_later(self, text: str) -> None:
        self._loop.call_soon_threadsafe(self._log_output, text)

    def _log_output(self, text: str) -> None:
        self._log.event("info", "output", text=text)

    def _log_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error in a callback of the event loop. It costs a connection, not the worker."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error))[-500:] if error else ""
        self._log.event("error", "unexpected", text=str(context.get("message")), trace=trace)

    def _reload_keys(self) -> None:
        try:
            if self._keys.reload():
                self._metrics.add("key_reloads")
                self._log.event("info", "keys_reloaded", worker=os.getpid())
        except ConfigurationError as error:
            self._log.event("error", "keys_not_reloaded", where=error.where, text=error.what)

    # Stopping

    def _drain(self) -> None:
        """Accept no more connections, answer every request that has arrived, exit within the drain timeout."""
        if self._service.draining:
            return
        # Connections that are not in the queue yet are refused and can try elsewhere. This holds for all workers.
        self._listener.listen(0)
        while self._accept_one():
            pass
        self._leave()

    def _leave(self) -> None:
        """Leave new connections to the other workers, and exit when those of this worker have ended."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._service.draining = True
        self._service.cut = 0
        self._metrics.set("ready", 0)
        now = time.monotonic()
        self._drain_until = now + self._settings.drain_timeout
        self._close_idle_at = now + min(self._settings.drain_idle, self._settings.drain_timeout)
        self._log.event("info", "draining", worker=os.getpid(), connections=len(self._service.connections))
        self._loop.call_later(0.01, self._drain_on)

    def _drain_on(self) -> None:
        service = self._service
        now = time.monotonic()
        if now >= self._close_idle_at:
            for connection in list(service.connections):
                if connection.is_idle:
                    connection.close()
        if not (service.connections or self._accepting) or now >= self._drain_until:
            self._stopped.set()
        else:
            self._loop.call_later(0.02, self._drain_on)

    def _on_stuck(self) -> None:
        """Answer the other requests, then exit so that a new worker replaces this one."""
        self._log.event("error", "stuck", worker=os.getpid(), text="the model does not return")
        self._exit_code = STUCK
        if not self._service.draining:
            self._leave()


def _warm_up(scorer: Scorer, executor: ThreadExecutor) -> None:
    """Learn from the package's first example how long a request takes. Scripts always run in the thread."""
    if scorer.package.runtime == "onnx":
        for body in [msgspec.json.encode(example["request"]) for example in scorer.package.examples[:1]] * 3:
            executor.score(body)


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(run: Callable[[], int], log: JsonLog) -> int:
    """Run a worker and return its exit code. Log the error that keeps it from starting."""
    try:
        return run()
    except StartError as error:
        log.event("error", "start_failed", where=error.where, text=error.what, next=error.next_step)
        log.flush()
        return error.exit_code
    except Exception as error:
        trace = "".join(traceback.format_exception(error))[-500:]
        log.event("error", "worker_failed", text=f"{type(error).__name__}: {error}"[:300], trace=trace)
        log.flush()
        return 1
