"""A client that sends at a fixed rate whether or not the answers come: latency counts from when a request was due."""

from __future__ import annotations

import asyncio
import time

import uvloop


class _Connection(asyncio.Protocol):
    """One connection, kept while the server keeps it; one request at a time."""

    def __init__(self) -> None:
        self._data = b""
        self._answer: asyncio.Future[bool] | None = None
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))

    async def ask(self, request: bytes) -> bool:
        """Send a request and wait for its answer; whether that was 200."""
        self._data = b""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, separator, body = self._data.partition(b"\r\n\r\n")
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if separator and len(body) >= length and self._answer is not None and not self._answer.done():
            self.is_open = self.is_open and b"connection: close" not in fields
            self._answer.set_result(head.split(b" ", 2)[1] == b"200")


class _Client:
    """Asks on whichever connection is free, and makes one when none is."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._address = host, port
        self._request = request
        self._free: list[_Connection] = []
        self.times: list[float] = []
        self.failures = 0

    async def ask(self, due: float) -> None:
        """One request, measured from when it was due."""
        if not await self._ask_once():
            self.failures += not await self._ask_once()  # a server may end a kept connection just when it is used
        self.times.append(time.perf_counter() - due)

    async def _ask_once(self) -> bool:
        connection = await self._connection()
        try:
            succeeded = await connection.ask(self._request)
        except OSError:
            return False
        if connection.is_open:
            self._free.append(connection)
        return succeeded

    async def _connection(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        _, made = await asyncio.get_running_loop().create_connection(_Connection, *self._address)
        return made


async def _run(client: _Client, rate: float, seconds: float) -> list[float]:
    start = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        while (early := due - time.perf_counter()) > 0:  # timers count in whole milliseconds, and may be early
            await asyncio.sleep(early)
        tasks.append(asyncio.create_task(client.ask(due)))
    await asyncio.gather(*tasks)
    if client.failures:
        raise RuntimeError(f"{client.failures} of {len(tasks)} requests failed")
    return sorted(client.times)


def latencies(host: str, port: int, request: bytes, *, rate: float, seconds: float) -> list[float]:
    """Return seconds from due to answered, sorted, of ``rate`` requests a second for ``seconds``."""
    return uvloop.run(_run(_Client(host, port, request), rate, seconds))
