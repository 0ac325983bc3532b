"""Clients that ask an endpoint for answers without a pause, and count what is lost.

Lost: fully sent, and no complete 2xx came back. The clients never send a request again. Half of them keep their
connection, half make a new one for each request.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from ml_service.ports import Endpoint


class Traffic:
    """Runs for as long as the block lasts. ``versions`` counts the stand-in's answers by version."""

    def __init__(self, endpoint: Endpoint, request: Any, *, clients: int = 8) -> None:
        self._address = urlsplit(endpoint.url)
        self._body = json.dumps(request).encode()
        self._headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.versions: Counter[str] = Counter()
        self.lost: list[str] = []
        self._clients = [threading.Thread(target=self._run, args=(number % 2 == 0,)) for number in range(clients)]

    def __enter__(self) -> Traffic:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()

    def wait_for(self, requests: int, timeout: float = 240) -> None:
        """Until so many requests were made in all."""
        deadline = time.monotonic() + timeout
        while self.answered + len(self.lost) < requests and time.monotonic() < deadline:
            time.sleep(0.02)

    def _run(self, keep_alive: bool) -> None:
        connection = self._connect()
        while not self._stop.is_set():
            if not keep_alive:
                connection.close()
                connection = self._connect()
            try:
                closes = self._ask(connection)
            except (OSError, http.client.HTTPException) as error:
                self._count_lost(f"keep_alive={keep_alive} {error!r}")
                closes = True
            if closes:
                connection.close()
                connection = self._connect()
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        assert self._address.hostname is not None
        return http.client.HTTPConnection(self._address.hostname, self._address.port, timeout=60)

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        connection.request("POST", "/score", self._body, self._headers)
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
