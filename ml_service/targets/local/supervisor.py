"""The supervisor of the local target: owns the port, starts and monitors the servers, moves the traffic.

There is one for each ``MLOPS_HOME``, in a session of its own, so that it outlives the task that started it:
``python -m ml_service.targets.local.supervisor HOME``. Its client is ``supervisor_client.py``, over a unix socket. When
it is up, or cannot start, it writes one line of JSON to standard output. Its log is below the target's directory.

Theory of operation
-------------------

Who owns what. The supervisor alone owns the public port, ``state.json`` and every server process; it holds
``supervisor.lock`` as long as it lives. A task owns a candidate: a conversation that says ``start`` has one until it
says ``switch`` or ends. So a killed task, whose socket the system closes, leaves no candidate. A second task that says
``start``, ``discard`` or ``undeploy`` ends the first one's conversation: it could not hold the deployment lock if the
first one still did.

In which order traffic moves (``switch``):

1. ``state.json`` names the new version. It is replaced whole, so a reader sees the old state or the new one.
2. The proxy sends every request to the new server from now on. There is no await between 1 and 2.
3. The server before gets no new requests. It answers those that it has, is stopped, and kills what it started.

What a crash leaves:

- The task, before ``switch``: the candidate is removed. After it: the new version serves, and 3 goes on by itself.
- The supervisor, at any moment: every server ends, since its watchdog reads the end of its pipe. The next supervisor
  brings up what ``state.json`` names: before 1 the old version, after 1 the new one, which has passed its verification.
- The server that serves: it is started again, with a growing pause. Requests wait for it, for some seconds.
- A candidate: ``start`` or ``switch`` fails, and the version before serves.
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

from ml_service.common.proxy import Proxy
from ml_service.errors import MlopsError
from ml_service.targets.local.server_process import WATCHDOG, Launcher, Progress, ServerProcess, StartError
from ml_service.targets.local.state import LOOPBACK, Paths, State, Version
from ml_service.targets.local.supervisor_client import socket_address

LOG_BYTES = 5 * 1024 * 1024
LOG_FILES = 3

_RESTART_TIMEOUT = 60.0
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_WATCH_INTERVAL = 1.0

Answer = dict[str, Any]


class RotatingLog:
    """The target's log: the servers' lines as they come, the supervisor's as JSON. Keys are masked in all of them."""

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
        """Read the keys, which are masked from now on."""
        with contextlib.suppress(FileNotFoundError):
            self._secrets = tuple(json.loads(self._keys_file.read_bytes()).values())

    def line(self, text: str) -> str:
        """Write one line of a server, and return it as written."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        self._logger.info("%s", text)
        return text

    def event(self, what: str, **about: Any) -> None:
        """Write a line about what the supervisor did."""
        self.line(json.dumps({"time": _now(), "source": "supervisor", "event": what, **about}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class CommandError(Exception):
    """A command that cannot be carried out. ``kind`` tells the client which error it is."""

    def __init__(self, kind: str, message: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.log = log


class Service:
    """The current version, its server, and the task that starts it again when it ends."""

    def __init__(self, proxy: Proxy, launcher: Launcher, log: RotatingLog) -> None:
        self._proxy = proxy
        self._launcher = launcher
        self._log = log
        self._server: ServerProcess | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self.trouble = "nothing is deployed"

    def switch_to(self, server: ServerProcess) -> ServerProcess | None:
        """Move all traffic to ``server`` at once, and return the one before, which the caller drains and stops."""
        before = self._release()
        self._adopt(server)
        self._keeper = asyncio.create_task(self._keep(server))
        return before

    def restore(self, version: Version) -> None:
        """Start the version that served before this supervisor started; it gets requests as soon as it is ready."""
        self.trouble = "starting"
        self._keeper = asyncio.create_task(self._revive(version))

    async def stop(self, drain_timeout: float) -> None:
        """Stop taking requests, wait for those in flight, and stop the server."""
        server = self._release()
        self._proxy.route_to(None)
        if server is not None:
            await server.upstream.drained(drain_timeout)
            await server.stop()
        if self._ending:
            await asyncio.wait(self._ending)

    def _adopt(self, server: ServerProcess) -> None:
        self._server = server
        self.trouble = ""
        self._proxy.route_to(server.upstream)

    def _release(self) -> ServerProcess | None:
        if self._keeper is not None:
            # It may be bringing a process up, which it then stops on its way out.
            self._keeper.cancel()
            self._ending.add(self._keeper)
            self._keeper.add_done_callback(self._ending.discard)
            self._keeper = None
        server, self._server = self._server, None
        return server

    async def _keep(self, server: ServerProcess) -> None:
        code = await server.ended()
        self._proxy.route_to(None)
        self._server = None
        self.trouble = f"restarting: its process ended with code {code}"
        self._log.event("ended", code=code, version=str(server.version))
        await self._revive(server.version)

    async def _revive(self, version: Version) -> None:
        """Start the version again, with a growing pause between attempts, then monitor it."""
        pause = _FIRST_PAUSE
        while True:
            try:
                server = await self._launcher.bring_up(version, _RESTART_TIMEOUT, lambda _: None)
                break
            except (StartError, MlopsError, OSError) as error:
                self.trouble = f"restarting: {error}"
                self._log.event("restart failed", why=str(error), pause=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self._log.event("restarted", version=str(version))
        self._adopt(server)
        await self._keep(server)


class Supervisor:
    """Answers commands. There is at most one candidate, as long as the conversation that started it."""

    def __init__(
        self, paths: Paths, state: State, proxy: Proxy, service: Service, launcher: Launcher, log: RotatingLog
    ) -> None:
        self._paths = paths
        self._state = state
        self._proxy = proxy
        self._service = service
        self._launcher = launcher
        self._log = log
        self._candidate: ServerProcess | None = None
        self._owner: asyncio.Task[None] | None = None
        self._port = 0
        self._candidate_port = 0
        self._conversations: set[asyncio.Task[None]] = set()
        self._retiring: dict[asyncio.Task[None], ServerProcess] = {}
        self._drain_timeout = 30.0
        self.finished = asyncio.Event()

    async def resume(self) -> None:
        """Serve again what the state names. If another program has its port, a deployment may name another one."""
        current, port = self._state.current, self._state.port
        if current is None:
            return
        try:
            self._port = self._candidate_port = await self._proxy.listen(LOOPBACK, port)
        except OSError as error:
            self._service.trouble = f"stopped: port {port} is not available ({error.strerror})"
            self._log.event("did not resume", why=self._service.trouble)
        else:
            self._service.restore(current)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one conversation with a client, command by command."""
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
        """End the supervisor when nothing is deployed and no conversation is open."""
        if self._state.current is None and not self._conversations:
            self.finished.set()

    async def close(self) -> None:
        """Drain and stop all servers."""
        for conversation in self._conversations:
            conversation.cancel()
        if self._conversations:
            await asyncio.wait(set(self._conversations))
        await self._service.stop(self._drain_timeout)
        await self._wait_for_drain({}, lambda _: None)
        await self._proxy.close()

    async def _answer(self, conversation: asyncio.Task[None], line: bytes, progress: Progress) -> Answer:
        command = json.loads(line)
        handlers: dict[str, Callable[[Answer, Progress], Awaitable[Answer]]] = {
            "status": self._status,
            "start": self._start,
            "said": self._candidate_log,
            "switch": self._switch,
            "discard": self._nothing_to_do,
            "settle": self._wait_for_drain,
            "undeploy": self._undeploy,
        }
        try:
            if command["command"] in ("start", "discard", "undeploy"):
                await self._take_over(conversation)
            return await handlers[command["command"]](command, progress)
        except CommandError as error:
            return {"error": error.kind, "message": str(error), "log": error.log}
        except StartError as error:
            return {"error": "unhealthy", "message": str(error), "log": error.log}
        except MlopsError as error:
            return {"error": "integrity", "message": str(error)}
        except OSError as error:
            return _unavailable(error, self._paths)

    async def _status(self, _command: Answer, _progress: Progress) -> Answer:
        about_itself = {"pid": os.getpid(), "watchdog": str(WATCHDOG)}
        return {"state": self._state.as_json(), "trouble": self._service.trouble, **about_itself}

    async def _start(self, command: Answer, progress: Progress) -> Answer:
        """Start a candidate beside what serves."""
        self._drain_timeout = float(command["drain_timeout"])
        self._candidate_port = await self._claim_port(int(command["port"]))
        self._log.read_keys()
        version = Version(**command["deployed"])
        self._log.event("starting", version=str(version), package=version.package_sha256)
        try:
            self._candidate = await self._launcher.bring_up(version, float(command["startup_timeout"]), progress)
        except StartError as error:
            self._log.event("did not start", version=str(version), why=str(error))
            raise
        return {"url": self._candidate.upstream.url}

    async def _candidate_log(self, _command: Answer, _progress: Progress) -> Answer:
        return {"log": self._candidate.last_lines if self._candidate else ()}

    async def _take_over(self, conversation: asyncio.Task[None]) -> None:
        """Make this the conversation that may have a candidate. The one before has lost the deployment lock."""
        if self._owner is not None and self._owner is not conversation:
            self._owner.cancel()
            await asyncio.wait({self._owner})
        self._owner = conversation
        await self._discard()

    async def _claim_port(self, port: int) -> int:
        """Listen on ``port`` before a server is started; the port in use stays in use until the switch."""
        if self._port and port in (0, self._port):
            return self._port
        try:
            return await self._proxy.listen(LOOPBACK, port)
        except OSError as error:
            raise CommandError("port", str(error.strerror)) from None

    async def _switch(self, command: Answer, progress: Progress) -> Answer:
        """Make the candidate the current version: first in the state, then in the proxy. See the top of this file."""
        candidate = self._candidate
        if candidate is None or candidate.has_ended:
            log = candidate.last_lines if candidate else ()
            raise CommandError("unhealthy", "its process ended before traffic moved", log)
        after = self._state_after(candidate.version, forget=bool(command["forget"]))
        after.save(self._paths.state)
        self._state, self._candidate = after, None
        before = self._service.switch_to(candidate)
        self._log.event("serving", version=str(candidate.version), package=candidate.version.package_sha256)
        if before is not None:
            self._retire(before)
        port_before, self._port = self._port, after.port
        if port_before != after.port:
            await self._proxy.unlisten(port_before)
        return await self._status(command, progress)

    def _state_after(self, version: Version, *, forget: bool) -> State:
        current, previous = self._state.current, self._state.previous
        if forget:
            previous = None
        elif current is not None and current.package_sha256 != version.package_sha256:
            previous = current
        return State(self._candidate_port, replace(version, since=_now()), previous)

    def _retire(self, server: ServerProcess) -> asyncio.Task[None]:
        task = asyncio.create_task(self._drain_and_stop(server))
        self._retiring[task] = server
        task.add_done_callback(self._retiring.pop)
        return task

    async def _drain_and_stop(self, server: ServerProcess) -> None:
        if not await server.upstream.drained(self._drain_timeout):
            self._log.event("cut off", version=str(server.version), requests=server.upstream.in_flight)
        await server.stop()
        self._log.event("stopped", version=str(server.version))

    async def _wait_for_drain(self, _command: Answer, progress: Progress) -> Answer:
        """Answer ``settle``: wait until the versions before have answered their requests and are stopped."""
        while self._retiring:
            await asyncio.wait(self._retiring, timeout=2)
            if waiting := sum(server.upstream.in_flight for server in self._retiring.values()):
                progress(f"the version before still works on {waiting} requests")
        return {}

    async def _nothing_to_do(self, _command: Answer, _progress: Progress) -> Answer:
        """Answer ``discard``: taking over the conversation has removed the candidate already."""
        return {}

    async def _discard(self) -> None:
        """Remove the candidate, if there is one, and stop listening on the port that was claimed for it."""
        # The fields change before the first await, so that the next candidate meets none of this one.
        candidate, self._candidate = self._candidate, None
        claimed, self._candidate_port = self._candidate_port, self._port
        if claimed != self._port:
            await self._proxy.unlisten(claimed)
        if candidate is not None:
            self._log.event("removed", version=str(candidate.version))
            await asyncio.shield(self._retire(candidate))

    async def _undeploy(self, command: Answer, progress: Progress) -> Answer:
        self._drain_timeout = float(command["drain_timeout"])
        self._paths.state.unlink(missing_ok=True)
        self._state = State()
        await self._proxy.unlisten(self._port)
        self._port = self._candidate_port = 0
        await self._service.stop(self._drain_timeout)
        self._log.event("undeployed")
        return await self._wait_for_drain(command, progress)


async def _answer_lines(
    reader: asyncio.StreamReader, send: Callable[[Answer], None], answer: Callable[[bytes, Progress], Awaitable[Answer]]
) -> None:
    """Answer each line in turn. The client never sends ahead: when a read ends during an answer, it has gone."""
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
    """Finish when the state directory was removed: then no task can reach this process any more."""
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


async def supervise(paths: Paths, environment: dict[str, str], announce: Callable[[Answer], None]) -> None:
    """Run until nothing is deployed or SIGTERM comes; call ``announce`` once, when commands are answered."""
    log = RotatingLog(paths)
    log.read_keys()
    proxy = Proxy()
    await proxy.start()
    launcher = Launcher(paths, environment, proxy.client, log.line)
    supervisor = Supervisor(paths, State.load(paths.state), proxy, Service(proxy, launcher, log), launcher, log)
    await supervisor.resume()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.finished.set)
    server = await asyncio.start_unix_server(supervisor.converse, sock=_control_socket(paths.control))
    watch = asyncio.create_task(_watch(paths.directory, supervisor.finished))
    log.event("supervisor started", pid=os.getpid())
    announce({"pid": os.getpid()})
    await supervisor.finished.wait()
    watch.cancel()
    server.close()
    await supervisor.close()
    log.event("supervisor ended", pid=os.getpid())


def _unavailable(error: OSError, paths: Paths) -> Answer:
    return {"error": "unavailable", "message": f"{error.strerror or error} ({error.filename or paths.directory})"}


def _announce(answer: Answer) -> None:
    """Write the line that the task that started this process waits for, and close its pipe."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main(arguments: list[str]) -> int:
    """Run the supervisor; its environment is passed on to the servers."""
    os.umask(0o077)
    paths = Paths(Path(arguments[0]))
    paths.directory.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(paths.supervisor_lock, timeout=60):
            asyncio.run(supervise(paths, dict(os.environ), _announce))
    except filelock.Timeout:
        _announce({"error": "busy", "message": "another supervisor runs"})
    except OSError as error:
        _announce(_unavailable(error, paths))
    except MlopsError as error:
        _announce({"error": "integrity", "message": str(error)})
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
