"""Start, monitor and stop one scoring server on a private address, and keep its last log lines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import aiohttp

from ml_service.common.proxy import Upstream
from ml_service.errors import IntegrityError
from ml_service.package import verify
from ml_service.targets.local.state import LOOPBACK, Paths, Version

WATCHDOG = Path(__file__).with_name("watchdog.py")
SERVER = Path("scoring") / "server.py"

STOP_GRACE = 10.0
"""Seconds between asking a process to stop and killing it."""

_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=5)
_PROGRESS_INTERVAL = 2.0
_PORT_ATTEMPTS = 3
_LAST_LINES = 30
_LONGEST_LINE = 64 * 1024

Log = Callable[[str], str]
"""Writes one line of the server's output to the target's log, and returns it as it was written: with keys masked."""

Progress = Callable[[str], None]


class StartError(Exception):
    """A server did not come up. ``log`` holds its last lines."""

    def __init__(self, reason: str, log: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.log = log


class ServerProcess:
    """A running ``scoring/server.py``. It is a child of its watchdog, and both share a process group of their own."""

    def __init__(self, version: Version, port: int, process: asyncio.subprocess.Process, log: Log) -> None:
        self.version = version
        self.port = port
        self.upstream = Upstream(f"http://{LOOPBACK}:{port}")
        self._process = process
        self._log = log
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._group_is_gone = False
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def launch(cls, version: Version, package: Path, environment: Mapping[str, str], log: Log) -> ServerProcess:
        """Start the process on a port that is free now; it need not have bound it yet."""
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-I",
                str(WATCHDOG),
                str(STOP_GRACE),
                str(package),
                sys.executable,
                str(package / SERVER),
            ),
            env={
                **environment,
                **version.options,
                "AZUREML_MODEL_DIR": str(package),
                "SCORING_HOST": LOOPBACK,
                "SCORING_PORT": str(port),
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(version, port, process, log)

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of its output, oldest first."""
        return tuple(self._last_lines)

    async def ready(self, client: aiohttp.ClientSession, timeout: float, progress: Progress) -> None:
        """Wait until ``/health/ready`` answers 200.

        Raises:
            StartError: the process ended, or ``timeout`` seconds went by.
        """
        loop = asyncio.get_running_loop()
        started = reported = loop.time()
        while True:
            if self.has_ended:
                code = await self.ended()
                raise StartError(f"its process ended with code {code} before it was ready", self.last_lines)
            response = await self._health(client)
            if response == "200":
                return
            waited = loop.time() - started
            if waited > timeout:
                reason = f"it was not ready after {timeout:.0f} s (/health/ready: {response})"
                raise StartError(reason, self.last_lines)
            if loop.time() - reported > _PROGRESS_INTERVAL:
                reported = loop.time()
                progress(f"waiting for /health/ready: {response} ({waited:.0f} of {timeout:.0f} s)")
            await asyncio.sleep(0.05)

    async def _health(self, client: aiohttp.ClientSession) -> str:
        try:
            async with client.get(f"{self.upstream.url}/health/ready", timeout=_HEALTH_TIMEOUT) as response:
                return str(response.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            return "connection refused" if isinstance(error, aiohttp.ClientConnectorError) else type(error).__name__

    @property
    def has_ended(self) -> bool:
        """True when the process has ended."""
        return self._process.returncode is not None

    @property
    def lost_its_port(self) -> bool:
        """True when it ended and another program has its port: then another port is worth a try."""
        return self.has_ended and not _is_free(self.port)

    async def ended(self) -> int:
        """Wait until the process has ended, end what it started, and return its exit code."""
        # Process.wait() of some Python versions also waits for the end of the output, which orphaned workers hold open.
        while self._process.returncode is None:
            await asyncio.sleep(0.1)
        self._kill_group()
        await asyncio.wait({self._reader}, timeout=5)
        return self._process.returncode

    async def stop(self) -> None:
        """Ask the process to stop, and kill it after STOP_GRACE seconds. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE):
                await self.ended()
        except TimeoutError:
            self._kill_group()
            await self.ended()

    def _kill_group(self) -> None:
        """End workers that outlived their parent."""
        if not self._group_is_gone:
            self._group_is_gone = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self) -> None:
        """Pass on each line of output. A line without end is cut, so that it cannot use up the supervisor's memory."""
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(_LONGEST_LINE):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._keep(line)
        if rest:
            self._keep(rest)

    def _keep(self, line: bytes) -> None:
        self._last_lines.append(self._log(line.decode("utf-8", "replace").rstrip()))


class Launcher:
    """Starts servers for packages of one directory, all with the same environment."""

    def __init__(self, paths: Paths, environment: Mapping[str, str], client: aiohttp.ClientSession, log: Log) -> None:
        self._paths = paths
        self._environment = {**environment, "SCORING_KEYS_FILE": str(paths.keys)}
        self._client = client
        self._log = log

    async def bring_up(self, version: Version, timeout: float, progress: Progress) -> ServerProcess:
        """Start a server and wait until it is ready; stop it when that fails or is cancelled.

        Raises:
            StartError: it did not come up.
            IntegrityError: the package is missing, or is not what its hash says.
        """
        package = self._paths.package(version.package_sha256)
        await asyncio.to_thread(_check, package, version)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            server = await self._launch(version, package)
            try:
                await server.ready(self._client, timeout, progress)
                return server
            except StartError:
                await server.stop()
                if attempt == _PORT_ATTEMPTS or not server.lost_its_port:
                    raise
            except BaseException:
                await asyncio.shield(server.stop())
                raise
        raise AssertionError("the last attempt returns or raises")

    async def _launch(self, version: Version, package: Path) -> ServerProcess:
        launching = asyncio.create_task(ServerProcess.launch(version, package, self._environment, self._log))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            await (await launching).stop()
            raise


def _check(package: Path, version: Version) -> None:
    if verify(package) != version.package_sha256:
        raise IntegrityError("the package is not the one that was deployed", where=str(package))


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def _is_free(port: int) -> bool:
    try:
        with socket.create_server((LOOPBACK, port)):
            return True
    except OSError as error:
        return error.errno != errno.EADDRINUSE
