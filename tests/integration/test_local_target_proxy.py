"""The reverse proxy: what it passes on, what it refuses, and what happens to requests while servers change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from ml_service.common.proxy import Proxy, Upstream

pytestmark = pytest.mark.slow

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[Upstream]:
    """A server that answers everything with ``handler``."""
    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, auto_decompress=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield Upstream(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()


@asynccontextmanager
async def proxy(**options: float) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy on a free port, and its address."""
    made = Proxy(**options)  # type: ignore[arg-type]
    await made.start()
    port = await made.listen("127.0.0.1", 0)
    yield made, f"http://127.0.0.1:{port}"
    await made.close()


def says(text: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=text)

    return handler


async def refused(url: str) -> bool:
    async with aiohttp.ClientSession() as client:
        try:
            await client.get(url)
        except aiohttp.ClientConnectorError:
            return True
        return False


def test_a_request_and_its_answer_pass_unchanged() -> None:
    """Method, path and query as written, headers, body, status and reason; not what concerns one connection."""

    async def handler(request: web.Request) -> web.Response:
        seen.update(request.headers)
        body = await request.read()
        return web.Response(
            status=418,
            reason="Teapot",
            headers={"X-Seen": f"{request.method} {request.raw_path}", "Content-Encoding": "gzip"},
            body=body,
        )

    seen: dict[str, str] = {}

    async def run() -> None:
        plain = aiohttp.ClientSession(auto_decompress=False)
        async with server(handler) as upstream, proxy() as (made, url), plain as client:
            made.route_to(upstream)
            sent = {"traceparent": "00-1-2-01", "Connection": "X-Private", "X-Private": "hop", "TE": "gzip"}
            address = URL(f"{url}/a%2Fb?q=%20", encoded=True)
            async with client.put(address, data=b"\x1f\x8bnot gzip", headers=sent) as answer:
                assert (answer.status, answer.reason) == (418, "Teapot")
                assert answer.headers["X-Seen"] == "PUT /a%2Fb?q=%20"
                assert await answer.read() == b"\x1f\x8bnot gzip"

    asyncio.run(run())
    assert seen["traceparent"] == "00-1-2-01"
    assert "X-Private" not in seen and "TE" not in seen


def test_a_kept_connection_outlives_its_server() -> None:
    """The same client connection is answered by one server, then by the next."""

    async def run() -> list[str]:
        answers = []
        connector = aiohttp.TCPConnector(limit=1)
        async with server(says("old")) as old, server(says("new")) as new, proxy() as (made, url):
            async with aiohttp.ClientSession(connector=connector) as client:
                for upstream in (old, new):
                    made.route_to(upstream)
                    async with client.get(url) as answer:
                        answers.append(await answer.text())
                        assert answer.headers.get("Connection", "keep-alive") == "keep-alive"
        return answers

    assert asyncio.run(run()) == ["old", "new"]


def test_requests_wait_for_a_server() -> None:
    """None is there: the request waits, and is answered when one comes."""

    async def run() -> str:
        async with server(says("here")) as upstream, proxy() as (made, url), aiohttp.ClientSession() as client:
            asyncio.get_running_loop().call_later(0.3, made.route_to, upstream)
            async with client.get(url) as answer:
                return await answer.text()

    assert asyncio.run(run()) == "here"


@pytest.mark.parametrize("gone", [True, False])
def test_a_request_does_not_wait_for_ever(gone: bool) -> None:
    """None comes, or the one that is known refuses connections: 503 with Retry-After."""

    async def run() -> tuple[int, str]:
        async with proxy(upstream_timeout=0.3) as (made, url), aiohttp.ClientSession() as client:
            if gone:
                made.route_to(Upstream("http://127.0.0.1:9"))
            async with client.get(url) as answer:
                assert (await answer.json())["error"]["code"] == "Unavailable"
                return answer.status, answer.headers["Retry-After"]

    assert asyncio.run(run()) == (503, "2")


def test_a_server_that_hangs_up_is_asked_once() -> None:
    """It had the request, so nobody else gets it: 502."""
    asked: list[str] = []

    async def hang_up(request: web.Request) -> web.Response:
        asked.append(request.path)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def run() -> int:
        async with server(hang_up) as upstream, proxy() as (made, url), aiohttp.ClientSession() as client:
            made.route_to(upstream)
            async with client.post(url, data=b"{}") as answer:
                return answer.status

    assert asyncio.run(run()) == 502
    assert asked == ["/"]


def test_a_body_beyond_the_limit() -> None:
    """413 names the limit; the server never sees it."""

    async def run() -> tuple[int, str]:
        async with proxy(max_body=1000) as (_, url), aiohttp.ClientSession() as client:
            async with client.post(url, data=b"x" * 1001) as answer:
                return answer.status, (await answer.json())["error"]["message"]

    assert asyncio.run(run()) == (413, "the body is larger than 1000 bytes")


def test_draining_counts_what_is_in_flight() -> None:
    """A server is drained when its last request is answered, and not before."""

    async def run() -> None:
        release = asyncio.Event()

        async def slow(_: web.Request) -> web.Response:
            await release.wait()
            return web.Response(text="done")

        async with server(slow) as upstream, proxy() as (made, url), aiohttp.ClientSession() as client:
            made.route_to(upstream)
            asking = asyncio.create_task(client.get(url))
            while not upstream.in_flight:
                await asyncio.sleep(0.01)
            assert not await upstream.drained(0.1)
            release.set()
            assert await upstream.drained(30)
            assert await (await asking).text() == "done"

    asyncio.run(run())


def test_ports_come_and_go() -> None:
    """Two ports answer at once; one that is given up refuses; a taken one raises and changes nothing."""

    async def run() -> None:
        async with server(says("here")) as upstream, proxy() as (made, first), aiohttp.ClientSession() as client:
            made.route_to(upstream)
            with pytest.raises(OSError, match="in use"):
                await made.listen("127.0.0.1", int(first.rpartition(":")[2]))
            second = await made.listen("127.0.0.1", 0)
            assert (await client.get(first)).status == (await client.get(f"http://127.0.0.1:{second}")).status == 200
            await made.unlisten(second)
            await made.unlisten(second)
            assert await refused(f"http://127.0.0.1:{second}")
            assert (await client.get(first)).status == 200

    asyncio.run(run())


def test_closing_refuses_what_waits() -> None:
    """A request that waits for a server gets 503 when the proxy closes, and not silence."""

    async def run() -> int:
        async with proxy(upstream_timeout=60) as (made, url), aiohttp.ClientSession() as client:
            asking = asyncio.create_task(client.get(url))
            await asyncio.sleep(0.3)
            await made.close()
            return (await asking).status

    assert asyncio.run(run()) == 503
