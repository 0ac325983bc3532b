"""Clients that ask an endpoint for answers without a pause, and count what is lost.

Lost: fully sent, and no complete 2xx came back. The clients never send a request again. Half of them keep their
connection, half make a new one for each request. Names in Azure are reached through the proxy of the environment.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ml_service.errors import MlopsError
from ml_service.http_session import is_in_azure
from ml_service.ports import Endpoint
from tests.support.waiting import wait_until


class Traffic:
    """Runs for as long as the block lasts. ``versions`` counts the stand-in's answers by version.

    Every second client keeps its connection, unless ``keep_alive`` is false: then connections are shared out anew with
    each request, as shares of traffic need.
    Where the address moves with the version, ``follow`` is asked for it again and again, as such clients must.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        request: Any,
        *,
        clients: int = 8,
        keep_alive: bool = True,
        follow: Callable[[], Endpoint] | None = None,
    ) -> None:
        self._url = endpoint.url
        self._follow = follow
        self._body = json.dumps(request).encode()
        self._headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.versions: Counter[str] = Counter()
        self.lost: list[str] = []
        kept = [keep_alive and number % 2 == 0 for number in range(clients)]
        self._clients = [threading.Thread(target=self._run, args=(one,)) for one in kept]
        if follow:
            self._clients.append(threading.Thread(target=self._look_for_address, args=(follow,)))

    def __enter__(self) -> Traffic:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()

    def wait_for(self, requests: int, timeout: float = 240) -> None:
        """Wait until this many requests were made in all."""
        wait_until(lambda: self.answered + len(self.lost) >= requests, f"{requests} requests were made", timeout)

    def _look_for_address(self, follow: Callable[[], Endpoint]) -> None:
        while not self._stop.wait(0.1):
            with suppress(MlopsError):
                self._url = follow().url

    def _run(self, keep_alive: bool) -> None:
        url, connection = self._url, _connect(self._url)
        while not self._stop.is_set():
            if not keep_alive or url != self._url:
                connection.close()
                url = self._url
                connection = _connect(url)
            try:
                closes = self._ask(connection, url)
            except (OSError, http.client.HTTPException) as error:
                self._count_lost(f"keep_alive={keep_alive} {error!r}")
                closes = True
            if closes:
                connection.close()
                connection = _connect(url)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, url: str) -> bool:
        through_proxy = is_in_azure(url) and url.startswith("http:")
        connection.request("POST", f"{url}/score" if through_proxy else "/score", self._body, self._headers)
        response = connection.getresponse()
        body = response.read()
        if not 200 <= response.status < 300:
            self._count_lost(f"status {response.status}: {body[:200]!r}")
        else:
            json.loads(body)
            with self._lock:
                self.answered += 1
                self.versions[response.headers.get("X-Model-Version", "")] += 1
        return response.will_close

    def _count_lost(self, why: str) -> None:
        with self._lock:
            self.lost.append(why)


def _connect(url: str) -> http.client.HTTPConnection:
    address = urlsplit(url)
    assert address.hostname is not None
    if not is_in_azure(url):
        return http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    proxy = urlsplit(os.environ["HTTPS_PROXY"])
    assert proxy.hostname is not None
    if address.scheme == "http":
        return http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=60)
    trusting = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
    tunnel = http.client.HTTPSConnection(proxy.hostname, proxy.port, timeout=60, context=trusting)
    tunnel.set_tunnel(address.hostname, address.port or 443)
    return tunnel
