"""A reverse proxy: owns an endpoint's port, moves its traffic from one server to the next without a lost request.

Requests are forwarded one by one, so a client's keep-alive connection outlives the server that answered on it. Each
request goes to exactly one server, over a connection of its own: no idle one can be closed under a request. See
ADR 0031.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

MAX_BODY = 64 * 1024 * 1024
"""Bytes. The scoring server's own limit is lower; this one bounds what a request can make the proxy hold."""

UPSTREAM_TIMEOUT = 10.0
"""Seconds that a request waits for a server that is being restarted, before it gets 503."""

BODY_TIMEOUT = 60.0
"""Seconds for a client to send its whole body."""

ANSWER_TIMEOUT = 300.0
"""Seconds for a server to answer."""

_MAX_HEADER = 64 * 1024
"""Bytes of a line of the header: well above the scoring server's limit, which then answers 431 itself."""

_HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    )
)


class Upstream:
    """A server that answers HTTP at ``url``, and the number of requests that it works on."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight for as long as the block lasts."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def drained(self, timeout: float) -> bool:
        """Wait until nothing is in flight; return False if something still is after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Proxy:
    """Listening ports whose requests are answered by one upstream, which may change at any time."""

    def __init__(self, *, upstream_timeout: float = UPSTREAM_TIMEOUT, max_body: int = MAX_BODY) -> None:
        self._upstream_timeout = upstream_timeout
        self._max_body = max_body
        self._upstream: Upstream | None = None
        self._available = asyncio.Event()
        application = web.Application(client_max_size=max_body)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
        )
        self._sites: dict[int, web.SockSite] = {}
        self._closing = False

    async def start(self) -> None:
        """Get ready to listen and to forward."""
        self.client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
        )
        await self._runner.setup()

    async def listen(self, host: str, port: int) -> int:
        """Answer on ``port``, too (0: a free one), and return the port.

        Raises:
            OSError: the port is in use or not permitted.
        """
        listener = socket.create_server((host, port), backlog=1024)
        site = web.SockSite(self._runner, listener)
        await site.start()
        number = int(listener.getsockname()[1])
        self._sites[number] = site
        return number

    async def unlisten(self, port: int) -> None:
        """Accept no new connection on ``port``; those made before stay open. Idempotent."""
        if (site := self._sites.pop(port, None)) is not None:
            await site.stop()

    def route_to(self, upstream: Upstream | None) -> None:
        """Send every request from now on to ``upstream``; with None they wait for the next one."""
        self._upstream = upstream
        if upstream is None:
            self._available.clear()
        else:
            self._available.set()

    async def close(self) -> None:
        """Stop listening, wait for the requests in flight, and refuse those that wait for an upstream."""
        for port in list(self._sites):
            await self.unlisten(port)
        self._closing = True
        self._available.set()
        await self._runner.cleanup()
        await self.client.close()

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                body = await request.read()
        except TimeoutError:
            return _refusal(408, "RequestTimeout", "the body did not arrive in time")
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, "PayloadTooLarge", f"the body is larger than {self._max_body} bytes")
        if not request.raw_path.startswith("/"):
            return _refusal(400, "BadRequest", "the request's target must be a path")
        return await self._forward_to_current(request, body)

    async def _forward_to_current(self, request: web.Request, body: bytes) -> web.Response:
        deadline = asyncio.get_running_loop().time() + self._upstream_timeout
        while (upstream := await self._wait_for_upstream(deadline)) is not None:
            try:
                with upstream.request():
                    return await self._forward(request, body, upstream)
            except aiohttp.ClientConnectorError:
                # Nothing was sent: another attempt cannot make the server work twice.
                await asyncio.sleep(0.05)
            except TimeoutError:
                return _refusal(504, "Timeout", f"the model did not answer in {ANSWER_TIMEOUT:.0f} s")
            except aiohttp.ClientError:
                return _refusal(502, "BadGateway", "the model's process ended while it worked on this request")
        return _refusal(503, "Unavailable", "no version is ready to answer", {"Retry-After": "2"})

    async def _wait_for_upstream(self, deadline: float) -> Upstream | None:
        try:
            async with asyncio.timeout_at(deadline):
                while self._upstream is None and not self._closing:
                    await self._available.wait()
        except TimeoutError:
            return None
        return self._upstream if asyncio.get_running_loop().time() < deadline else None

    async def _forward(self, request: web.Request, body: bytes, upstream: Upstream) -> web.Response:
        async with self.client.request(
            request.method,
            URL(upstream.url + request.raw_path, encoded=True),
            headers=_end_to_end(request.headers),
            data=body or None,
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
            headers = _end_to_end(answer.headers)
            return web.Response(status=answer.status, reason=answer.reason, headers=headers, body=content)


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Return the headers that concern both ends, without those of one connection and those that it names."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    dropped = _HOP_BY_HOP | named | {"content-length", "expect"}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = json.dumps({"error": {"code": code, "message": message}})
    return web.Response(status=status, text=body, content_type="application/json", headers=headers)
