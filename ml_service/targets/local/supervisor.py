"""The supervisor of the local target: owns the port, starts and watches the backends, moves the traffic.

One a ``MLOPS_HOME``, in a session of its own, so that it outlives the task that started it:
``python -m ml_service.targets.local.supervisor HOME``. Its client is ``target.py``, over a unix socket; on
standard output it says, in one line of JSON, whether it stands. Its log is below the target's directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from ml_service.common.proxy import Front
from ml_service.errors import MlopsError
from ml_service.targets.local.server_process import Backend, BackendFailed, Launcher, Progress
from ml_service.targets.local.state import LOOPBACK, Deployed, Paths, State, socket_address

LOG_BYTES = 5 * 1024 * 1024
LOG_FILES = 3

_RESTART_TIMEOUT = 60.0
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_WATCH_INTERVAL = 1.0

Answer = dict[str, Any]


class RotatingLog:
    """The target's log: lines of the backends as they come, lines of our own as JSON; no line holds a key."""

    def __init__(self, paths: Paths) -> None:
        paths.logs.mkdir(parents=True, exist_ok=True)
        self._keys_file = paths.keys
        self._secrets: tuple[str, ...] = ()
        self._logger = logging.Logger("local-target")
        rotating = logging.handlers.RotatingFileHandler
        self._logger.addHandler(rotating(paths.log, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"))
        # A full disk must not take down what serves: a line that cannot be written is dropped.
        logging.raiseExceptions = False

    def read_keys(self) -> None:
        """Learn which texts must never be written."""
        with contextlib.suppress(FileNotFoundError):
            self._secrets = tuple(json.loads(self._keys_file.read_bytes()).values())

    def line(self, text: str) -> str:
        """Write one line of a backend; returns it as written."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        self._logger.info("%s", text)
        return text

    def event(self, what: str, **about: Any) -> None:
        """Write what the supervisor itself did."""
        self.line(json.dumps({"time": _now(), "source": "supervisor", "event": what, **about}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class CannotDo(Exception):
    """A command that cannot be carried out; ``kind`` tells the adapter which error it is."""

    def __init__(self, kind: str, message: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.log = log


class Service:
    """What serves: the current version, its backend, and the task that starts it again when it ends."""

    def __init__(self, front: Front, launcher: Launcher, log: RotatingLog) -> None:
        self._front = front
        self._launcher = launcher
        self._log = log
        self._backend: Backend | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self.trouble = "nothing is deployed"

    def switch_to(self, backend: Backend) -> Backend | None:
        """Move all traffic to ``backend`` at once; returns the one before, still running, for the caller to drain."""
        before = self._release()
        self._adopt(backend)
        self._keeper = asyncio.create_task(self._keep(backend))
        return before

    def restore(self, deployed: Deployed) -> None:
        """Bring up again what served before this supervisor started; it takes requests as soon as it is ready."""
        self.trouble = "starting"
        self._keeper = asyncio.create_task(self._revive(deployed))

    async def stop(self, drain_timeout: float) -> None:
        """Take no more requests, end those in flight, stop the process."""
        backend = self._release()
        self._front.route_to(None)
        if backend is not None:
            await backend.upstream.drained(drain_timeout)
            await backend.stop()
        if self._ending:
            await asyncio.wait(self._ending)

    def _adopt(self, backend: Backend) -> None:
        self._backend = backend
        self.trouble = ""
        self._front.route_to(backend.upstream)

    def _release(self) -> Backend | None:
        if self._keeper is not None:
            # It may be bringing a process up, which it then stops on its way out.
            self._keeper.cancel()
            self._ending.add(self._keeper)
            self._keeper.add_done_callback(self._ending.discard)
            self._keeper = None
        backend, self._backend = self._backend, None
        return backend

    async def _keep(self, backend: Backend) -> None:
        code = await backend.ended()
        self._front.route_to(None)
        self._backend = None
        self.trouble = f"restarting: its process ended with code {code}"
        self._log.event("ended", code=code, version=str(backend.deployed))
        await self._revive(backend.deployed)

    async def _revive(self, deployed: Deployed) -> None:
        """Try until it is up, with a growing pause; then watch it in turn."""
        pause = _FIRST_PAUSE
        while True:
            try:
                backend = await self._launcher.bring_up(deployed, _RESTART_TIMEOUT, lambda _: None)
                break
            except (BackendFailed, MlopsError, OSError) as error:
                self.trouble = f"restarting: {error}"
                self._log.event("restart failed", why=str(error), pause=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self._log.event("restarted", version=str(deployed))
        self._adopt(backend)
        await self._keep(backend)


class Supervisor:
    """Answers the adapter's commands. There is one candidate at most, as long as the conversation that asked for it."""

    def __init__(
        self, paths: Paths, state: State, front: Front, service: Service, launcher: Launcher, log: RotatingLog
    ) -> None:
        self._paths = paths
        self._state = state
        self._front = front
        self._service = service
        self._launcher = launcher
        self._log = log
        self._candidate: Backend | None = None
        self._owner: asyncio.Task[None] | None = None
        self._port = 0
        self._candidate_port = 0
        self._conversations: set[asyncio.Task[None]] = set()
        self._retiring: dict[asyncio.Task[None], Backend] = {}
        self._drain_timeout = 30.0
        self.finished = asyncio.Event()

    async def resume(self) -> None:
        """Serve again what the state says. When its port is somebody else's by now, a deployment may name another."""
        current, port = self._state.current, self._state.port
        if current is None:
            return
        try:
            self._port = self._candidate_port = await self._front.listen(LOOPBACK, port)
        except OSError as error:
            self._service.trouble = f"stopped: port {port} cannot be had ({error.strerror})"
            self._log.event("did not resume", why=self._service.trouble)
        else:
            self._service.restore(current)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One conversation with an adapter, command by command."""
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)

        def send(answer: Answer) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(answer).encode() + b"\n")

        try:
            if not self.finished.is_set():
                await _answer_lines(reader, send, functools.partial(self._answer, task))
        except asyncio.CancelledError:
            self._log.event("made room for another deployment")
        except ConnectionError:
            self._log.event("the task went away")
        finally:
            if self._owner is task:
                self._owner = None
                await self._discard()
            writer.close()
            self._conversations.discard(task)
            self.finish_when_idle()

    def finish_when_idle(self) -> None:
        """With nothing deployed and nobody asking, there is nothing to supervise."""
        if self._state.current is None and not self._conversations:
            self.finished.set()

    async def close(self) -> None:
        """Drain and stop everything."""
        for conversation in self._conversations:
            conversation.cancel()
        if self._conversations:
            await asyncio.wait(set(self._conversations))
        await self._service.stop(self._drain_timeout)
        await self._settle({}, lambda _: None)
        await self._front.close()

    async def _answer(self, conversation: asyncio.Task[None], line: bytes, progress: Progress) -> Answer:
        command = json.loads(line)
        handlers: dict[str, Callable[[Answer, Progress], Awaitable[Answer]]] = {
            "status": self._status,
            "start": self._start,
            "said": self._said,
            "switch": self._switch,
            "discard": self._nothing_more,
            "settle": self._settle,
            "undeploy": self._undeploy,
        }
        try:
            if command["command"] in ("start", "discard", "undeploy"):
                await self._take_over(conversation)
            return await handlers[command["command"]](command, progress)
        except CannotDo as error:
            return {"error": error.kind, "message": str(error), "log": error.log}
        except BackendFailed as error:
            return {"error": "unhealthy", "message": str(error), "log": error.log}
        except MlopsError as error:
            return {"error": "integrity", "message": str(error)}
        except OSError as error:
            return _unavailable(error, self._paths)

    async def _status(self, _command: Answer, _progress: Progress) -> Answer:
        return {"state": self._state.as_json(), "trouble": self._service.trouble, "pid": os.getpid()}

    async def _start(self, command: Answer, progress: Progress) -> Answer:
        """Bring a candidate up beside what serves."""
        self._drain_timeout = float(command["drain_timeout"])
        self._candidate_port = await self._claim_port(int(command["port"]))
        self._log.read_keys()
        deployed = Deployed(**command["deployed"])
        self._log.event("starting", version=str(deployed), package=deployed.package_sha256)
        try:
            self._candidate = await self._launcher.bring_up(deployed, float(command["startup_timeout"]), progress)
        except BackendFailed as error:
            self._log.event("did not start", version=str(deployed), why=str(error))
            raise
        return {"url": self._candidate.upstream.url}

    async def _said(self, _command: Answer, _progress: Progress) -> Answer:
        return {"log": self._candidate.last_lines if self._candidate else ()}

    async def _take_over(self, conversation: asyncio.Task[None]) -> None:
        """Be the one that may have a candidate. Who was it before holds the deployment lock no more."""
        if self._owner is not None and self._owner is not conversation:
            self._owner.cancel()
            await asyncio.wait({self._owner})
        self._owner = conversation
        await self._discard()

    async def _claim_port(self, port: int) -> int:
        """Have ``port`` before anything is started; the one that is in use now stays in use until the switch."""
        if self._port and port in (0, self._port):
            return self._port
        try:
            return await self._front.listen(LOOPBACK, port)
        except OSError as error:
            raise CannotDo("port", str(error.strerror)) from None

    async def _switch(self, command: Answer, progress: Progress) -> Answer:
        """The candidate becomes current. What is written first is what a supervisor after this one would bring up."""
        candidate = self._candidate
        if candidate is None or candidate.has_ended:
            log = candidate.last_lines if candidate else ()
            raise CannotDo("unhealthy", "its process ended before traffic moved", log)
        after = self._state_after(candidate.deployed, forget=bool(command["forget"]))
        after.save(self._paths.state)
        self._state, self._candidate = after, None
        before = self._service.switch_to(candidate)
        self._log.event("serving", version=str(candidate.deployed), package=candidate.deployed.package_sha256)
        if before is not None:
            self._retire(before)
        left, self._port = self._port, after.port
        if left != after.port:
            await self._front.unlisten(left)
        return await self._status(command, progress)

    def _state_after(self, deployed: Deployed, *, forget: bool) -> State:
        current, previous = self._state.current, self._state.previous
        if forget:
            previous = None
        elif current is not None and current.package_sha256 != deployed.package_sha256:
            previous = current
        return State(self._candidate_port, replace(deployed, since=_now()), previous)

    def _retire(self, backend: Backend) -> asyncio.Task[None]:
        task = asyncio.create_task(self._drain_and_stop(backend))
        self._retiring[task] = backend
        task.add_done_callback(self._retiring.pop)
        return task

    async def _drain_and_stop(self, backend: Backend) -> None:
        if not await backend.upstream.drained(self._drain_timeout):
            self._log.event("cut off", version=str(backend.deployed), requests=backend.upstream.in_flight)
        await backend.stop()
        self._log.event("stopped", version=str(backend.deployed))

    async def _settle(self, _command: Answer, progress: Progress) -> Answer:
        """Wait until the versions left behind have ended what they had in flight, and are gone."""
        while self._retiring:
            await asyncio.wait(self._retiring, timeout=2)
            if waiting := sum(backend.upstream.in_flight for backend in self._retiring.values()):
                progress(f"the version before still works on {waiting} requests")
        return {}

    async def _nothing_more(self, _command: Answer, _progress: Progress) -> Answer:
        """To have taken over is all: no candidate is left."""
        return {}

    async def _discard(self) -> None:
        """Remove the candidate, if there is one, and the port that was claimed for it."""
        # All that the next candidate would meet changes before the first await.
        candidate, self._candidate = self._candidate, None
        claimed, self._candidate_port = self._candidate_port, self._port
        if claimed != self._port:
            await self._front.unlisten(claimed)
        if candidate is not None:
            self._log.event("removed", version=str(candidate.deployed))
            await asyncio.shield(self._retire(candidate))

    async def _undeploy(self, command: Answer, progress: Progress) -> Answer:
        self._drain_timeout = float(command["drain_timeout"])
        self._paths.state.unlink(missing_ok=True)
        self._state = State()
        await self._front.unlisten(self._port)
        self._port = self._candidate_port = 0
        await self._service.stop(self._drain_timeout)
        self._log.event("undeployed")
        return await self._settle(command, progress)


async def _answer_lines(
    reader: asyncio.StreamReader, send: Callable[[Answer], None], answer: Callable[[bytes, Progress], Awaitable[Answer]]
) -> None:
    """Answer each line in turn. The other end never sends ahead: when a read ends during an answer, it is gone."""
    incoming = asyncio.create_task(reader.readline())
    try:
        while line := await incoming:
            incoming = asyncio.create_task(reader.readline())
            work = asyncio.ensure_future(answer(line, lambda text: send({"progress": text})))
            try:
                await asyncio.wait({work, incoming}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    return
                send(work.result())
            finally:
                work.cancel()
                await asyncio.wait({work})
    finally:
        incoming.cancel()


async def _watch(directory: Path, finished: asyncio.Event) -> None:
    """End when somebody removed the state directory: nothing could reach this process any more."""
    identity = directory.stat().st_ino
    while True:
        await asyncio.sleep(_WATCH_INTERVAL)
        try:
            if directory.stat().st_ino != identity:
                break
        except FileNotFoundError:
            break
    finished.set()


def _control_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(path) as address:
        listener.bind(address)
    path.chmod(0o600)
    return listener


async def supervise(paths: Paths, environment: dict[str, str], say: Callable[[Answer], None]) -> None:
    """Run until nothing is deployed, or until told to stop; ``say`` hears once that it stands."""
    log = RotatingLog(paths)
    log.read_keys()
    front = Front()
    await front.start()
    launcher = Launcher(paths, environment, front.client, log.line)
    supervisor = Supervisor(paths, State.load(paths.state), front, Service(front, launcher, log), launcher, log)
    await supervisor.resume()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.finished.set)
    server = await asyncio.start_unix_server(supervisor.converse, sock=_control_socket(paths.control))
    watch = asyncio.create_task(_watch(paths.directory, supervisor.finished))
    log.event("supervisor started", pid=os.getpid())
    say({"pid": os.getpid()})
    await supervisor.finished.wait()
    watch.cancel()
    server.close()
    await supervisor.close()
    log.event("supervisor ended", pid=os.getpid())


def _unavailable(error: OSError, paths: Paths) -> Answer:
    return {"error": "unavailable", "message": f"{error.strerror or error} ({error.filename or paths.directory})"}


def _say_once(answer: Answer) -> None:
    """Answer the task that started this process, and let go of its pipe."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main(arguments: list[str]) -> int:
    """Entry point; the environment is the backends'."""
    os.umask(0o077)
    paths = Paths(Path(arguments[0]))
    paths.directory.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(paths.supervisor_lock, timeout=60):
            asyncio.run(supervise(paths, dict(os.environ), _say_once))
    except filelock.Timeout:
        _say_once({"error": "busy", "message": "another supervisor runs"})
    except OSError as error:
        _say_once(_unavailable(error, paths))
    except MlopsError as error:
        _say_once({"error": "integrity", "message": str(error)})
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
