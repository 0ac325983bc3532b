"""One process that serves a package on a private address: started, watched, stopped, with what it said."""

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
from ml_service.targets.local.state import LOOPBACK, Deployed, Paths

GUARD = Path(__file__).with_name("watchdog.py")
SERVER = Path("scoring") / "server.py"

STOP_GRACE = 10.0
"""Seconds between asking a process to stop and killing it."""

_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=5)
_PORT_ATTEMPTS = 3
_LAST_LINES = 30
_LONGEST_LINE = 64 * 1024

Log = Callable[[str], str]
"""Takes one line of what the process says, and gives it back as it may be shown."""

Progress = Callable[[str], None]


class BackendFailed(Exception):
    """A process did not come up. ``log`` is the last that it said."""

    def __init__(self, why: str, log: tuple[str, ...]) -> None:
        super().__init__(why)
        self.log = log


class Backend:
    """A running ``scoring/server.py``. It is a child of a guard, and with it in a process group of its own."""

    def __init__(self, deployed: Deployed, port: int, process: asyncio.subprocess.Process, log: Log) -> None:
        self.deployed = deployed
        self.port = port
        self.upstream = Upstream(f"http://{LOOPBACK}:{port}")
        self._process = process
        self._log = log
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self._group_is_gone = False
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def launch(cls, deployed: Deployed, package: Path, environment: Mapping[str, str], log: Log) -> Backend:
        """Start the process on a port that is free now; it need not have bound it yet."""
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(GUARD), str(STOP_GRACE), str(package), sys.executable, str(package / SERVER)),
            env={
                **environment,
                **deployed.options,
                "AZUREML_MODEL_DIR": str(package),
                "SCORING_HOST": LOOPBACK,
                "SCORING_PORT": str(port),
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(deployed, port, process, log)

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What the process said last, oldest first."""
        return tuple(self._said)

    async def ready(self, client: aiohttp.ClientSession, timeout: float, progress: Progress) -> None:
        """Wait until ``/health/ready`` answers 200.

        Raises:
            BackendFailed: the process ended, or ``timeout`` seconds went by.
        """
        loop = asyncio.get_running_loop()
        started = reported = loop.time()
        while True:
            if self.has_ended:
                code = await self.ended()
                raise BackendFailed(f"its process ended with code {code} before it was ready", self.last_lines)
            answer = await self._health(client)
            if answer == "200":
                return
            waited = loop.time() - started
            if waited > timeout:
                why = f"it was not ready after {timeout:.0f} s (/health/ready: {answer})"
                raise BackendFailed(why, self.last_lines)
            if loop.time() - reported > 2:
                reported = loop.time()
                progress(f"waiting for /health/ready: {answer} ({waited:.0f} of {timeout:.0f} s)")
            await asyncio.sleep(0.05)

    async def _health(self, client: aiohttp.ClientSession) -> str:
        try:
            async with client.get(f"{self.upstream.url}/health/ready", timeout=_HEALTH_TIMEOUT) as answer:
                return str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            return "connection refused" if isinstance(error, aiohttp.ClientConnectorError) else type(error).__name__

    @property
    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.returncode is not None

    @property
    def lost_its_port(self) -> bool:
        """Whether it ended while somebody else has its port: it lost the race, and another one is worth a try."""
        return self.has_ended and not _is_free(self.port)

    async def ended(self) -> int:
        """Wait for the end of the process and of all that it started; its exit code."""
        # Process.wait() of some Python versions also waits for the end of the output, which orphaned workers hold open.
        while self._process.returncode is None:
            await asyncio.sleep(0.1)
        self._kill_group()
        await asyncio.wait({self._reader}, timeout=5)
        return self._process.returncode

    async def stop(self) -> None:
        """Ask it to stop, then make it. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE):
                await self.ended()
        except TimeoutError:
            self._kill_group()
            await self.ended()

    def _kill_group(self) -> None:
        """Workers that outlived their parent go too."""
        if not self._group_is_gone:
            self._group_is_gone = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self) -> None:
        """Pass on each line; a line without end is cut, so that no output can make the supervisor grow."""
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(_LONGEST_LINE):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._say(line)
        if rest:
            self._say(rest)

    def _say(self, line: bytes) -> None:
        self._said.append(self._log(line.decode("utf-8", "replace").rstrip()))


class Launcher:
    """Brings packages up below one directory, all with the same environment."""

    def __init__(self, paths: Paths, environment: Mapping[str, str], client: aiohttp.ClientSession, log: Log) -> None:
        self._paths = paths
        self._environment = {**environment, "SCORING_KEYS_FILE": str(paths.keys)}
        self._client = client
        self._log = log

    async def bring_up(self, deployed: Deployed, timeout: float, progress: Progress) -> Backend:
        """Start a process and wait until it is ready; nothing of it is left when that fails or is cancelled.

        Raises:
            BackendFailed: it did not come up.
            MlopsError: the package is missing, or is not what its hash says.
        """
        package = self._paths.package(deployed.package_sha256)
        await asyncio.to_thread(_check, package, deployed)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            backend = await self._launch(deployed, package)
            try:
                await backend.ready(self._client, timeout, progress)
                return backend
            except BackendFailed:
                await backend.stop()
                if attempt == _PORT_ATTEMPTS or not backend.lost_its_port:
                    raise
            except BaseException:
                await asyncio.shield(backend.stop())
                raise
        raise AssertionError("the last attempt returns or raises")

    async def _launch(self, deployed: Deployed, package: Path) -> Backend:
        launching = asyncio.create_task(Backend.launch(deployed, package, self._environment, self._log))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            await (await launching).stop()
            raise


def _check(package: Path, deployed: Deployed) -> None:
    if verify(package) != deployed.package_sha256:
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
