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
from scoring_service.executor import Lane
from scoring_service.http.app import Service
from scoring_service.http.protocol import Connection
from scoring_service.json_log import Journal, JournalStream
from scoring_service.keys import KeyRing
from scoring_service.metrics import SharedMetrics
from scoring_service.model.package import Scorer, load
from scoring_service.settings import Settings

BACKLOG = 2048
STUCK = 70
"""Exit code of a worker that gives up because its model does not come back."""

_TICK = 1.0
_ACCEPT_PAUSE = 0.001
_DESCRIPTOR_PAUSE = 0.5
_COMPLAINT_PAUSE = 60.0
"""Seconds for which one line says that connections cannot be taken."""
_MOST_PAUSES = 10


class Worker:
    """Loads the model, then serves until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        index: int,
        listener: socket.socket,
        keys: KeyRing,
        shared: SharedMetrics,
        journal: Journal,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._keys = keys
        self._shared = shared
        self._metrics = shared.workers[index]
        self._journal = journal
        self._parent = os.getppid()
        self._pauses = 0
        self._is_paused = False
        self._complain_again_at = 0.0
        self._accepting: set[asyncio.Task[object]] = set()
        self._drain_until = 0.0
        self._close_idle_at = 0.0
        self._exit_code = 0

    def run(self) -> int:
        """Serve; returns the exit code. Raises StartError when the model does not load."""
        _allow_many_connections()
        sys.stdout = sys.stderr = JournalStream(lambda text: self._journal.event("info", "output", text=text))
        scorer = load(self._settings.package, self._settings.max_rows, self._settings.threads)
        return uvloop.run(self._serve(scorer))

    async def _serve(self, scorer: Scorer) -> int:
        self._loop = loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        sys.stdout = sys.stderr = JournalStream(self._log_output_later)
        self._service = Service(self._settings, scorer, self._keys, self._journal, self._metrics, self._shared)
        loop.set_exception_handler(self._log_failure)
        self._service.lane = self._lane(scorer)
        self._warm_up(scorer)
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGHUP, self._reload_keys)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # one that came during the start is handled now
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and sends SIGTERM
        self._listener.setblocking(False)
        self._listen()
        loop.add_reader(self._listener.fileno(), self._accept)
        self._metrics.set("pid", os.getpid())
        self._metrics.set("ready", 1)
        package = scorer.package
        self._journal.event("info", "ready", worker=os.getpid(), model=package.name, version=package.version)
        self._tick()
        self._write_log()
        await self._stopped.wait()
        cut = self._service.cut + len(self._service.connections)
        self._journal.event("info", "stopped", worker=os.getpid(), connections_cut=cut)
        for connection in list(self._service.connections):
            connection.abort()
        self._journal.flush()
        return self._exit_code

    def _listen(self) -> None:
        """Take connections; another service may have begun to since the address was bound (UnavailableError)."""
        try:
            self._listener.listen(BACKLOG)
        except OSError as error:
            where = self._settings.socket or f"{self._settings.host}:{self._settings.port}"
            next_step = "end the other service, or choose another SCORING_PORT"
            raise UnavailableError(f"cannot listen here ({error.strerror})", where=where, next_step=next_step) from None

    def _lane(self, scorer: Scorer) -> Lane:
        settings = self._settings
        return Lane(
            self._service.score_in_thread,
            scorer.cancel,
            self._give_up,
            threads=1,
            max_queue=settings.max_queue,
            queue_timeout=settings.queue_timeout,
            timeout=settings.timeout,
        )

    def _warm_up(self, scorer: Scorer) -> None:
        """Learn from the package's first example how long a request takes; scripts go through the lane anyway."""
        if scorer.package.runtime == "onnx":
            for body in [msgspec.json.encode(example["request"]) for example in scorer.package.examples[:1]] * 3:
                self._service.score_in_thread(body)

    # Connections

    def _accept(self) -> None:
        """Take one connection, unless another worker has fewer and is free to take it."""
        if self._has_more_than_others() and self._pauses < _MOST_PAUSES:
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
        except OSError as error:  # no more descriptors: those in use come back
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
        """Try again later: the connection stays in the queue, and would wake up the event loop without end."""
        if self._is_paused:
            return
        self._is_paused = True
        if self._service.now >= self._complain_again_at:
            self._complain_again_at = self._service.now + _COMPLAINT_PAUSE
            self._journal.event("error", "accept_failed", text=str(error), again_in=_DESCRIPTOR_PAUSE)
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(_DESCRIPTOR_PAUSE, self._accept_again)

    async def _connect(self, connected: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Connection(self._service), connected)
        except OSError:  # gone before it was looked at
            connected.close()

    def _accept_again(self) -> None:
        self._is_paused = False
        if self._listener.fileno() >= 0 and not self._service.draining:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _has_more_than_others(self) -> bool:
        mine = self._metrics.get("connections")
        others = (worker for worker in self._shared.workers if worker is not self._metrics and worker.get("ready"))
        return any(worker.get("connections") < mine for worker in others)

    # Once in a while

    def _tick(self) -> None:
        """Time passes; whatever goes wrong with it is logged, and it goes on passing."""
        try:
            self._look_around()
        finally:
            self._loop.call_later(_TICK, self._tick)

    def _look_around(self) -> None:
        """Limits of connections, changed keys, a parent that is gone."""
        service = self._service
        service.tick()
        self._metrics.set("heartbeat", service.now)
        for connection in list(service.connections):
            connection.check(service.now)
        if self._keys.has_changed():
            self._reload_keys()
        if os.getppid() != self._parent and not service.draining:
            self._drain()

    def _write_log(self) -> None:
        """Many lines are written at once, none later than this."""
        self._journal.flush()
        self._loop.call_later(0.02, self._write_log)

    def _log_output_later(self, text: str) -> None:
        self._loop.call_soon_threadsafe(self._log_output, text)

    def _log_output(self, text: str) -> None:
        self._journal.event("info", "output", text=text)

    def _log_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error of ours in a callback: the connection concerned is lost, the worker is not."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error))[-500:] if error else ""
        self._journal.event("error", "unexpected", text=str(context.get("message")), trace=trace)

    def _reload_keys(self) -> None:
        try:
            if self._keys.reload():
                self._metrics.add("key_reloads")
                self._journal.event("info", "keys_reloaded", worker=os.getpid())
        except ConfigurationError as error:
            self._journal.event("error", "keys_not_reloaded", where=error.where, text=error.what)

    # The end

    def _drain(self) -> None:
        """Take no more connections, answer what has come, end within the time that is set."""
        if self._service.draining:
            return
        # What has not reached the queue by now is refused, and can try elsewhere. This holds for all workers.
        self._listener.listen(0)
        while self._accept_one():
            pass
        self._finish()

    def _finish(self) -> None:
        """Leave new connections to the other workers, and end when those of this one are through."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._service.draining = True
        self._service.cut = 0
        self._metrics.set("ready", 0)
        now = time.monotonic()
        self._drain_until = now + self._settings.drain_timeout
        self._close_idle_at = now + min(self._settings.drain_idle, self._settings.drain_timeout)
        self._journal.event("info", "draining", worker=os.getpid(), connections=len(self._service.connections))
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

    def _give_up(self) -> None:
        """The model does not come back: serve what else is under way, then make room for a new worker."""
        self._journal.event("error", "stuck", worker=os.getpid(), text="the model does not come back")
        self._exit_code = STUCK
        if not self._service.draining:
            self._finish()


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(run: Callable[[], int], journal: Journal) -> int:
    """Run a worker; an error that keeps it from starting is said, and becomes its exit code."""
    try:
        return run()
    except StartError as error:
        journal.event("error", "start_failed", where=error.where, text=error.what, next=error.next_step)
        journal.flush()
        return error.exit_code
    except Exception as error:
        trace = "".join(traceback.format_exception(error))[-500:]
        journal.event("error", "worker_failed", text=f"{type(error).__name__}: {error}"[:300], trace=trace)
        journal.flush()
        return 1
