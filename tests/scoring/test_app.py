"""Short requests that arrive together: scored one after the other in the event loop, then answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import scoring_service.http.app as service_module
from scoring_service.executor import Job, ThreadExecutor
from scoring_service.http.app import Service
from scoring_service.http.protocol import Connection
from scoring_service.json_log import JsonLog
from scoring_service.keys import KeyRing
from scoring_service.metrics import SharedMetrics
from scoring_service.model.scorer import load
from scoring_service.settings import Settings
from tests.scoring.test_protocol import Transport
from tests.support.scoring_server import request

BODY = b'{"data": [[1, 2, 3]]}'


class Harness:
    """A service without sockets, with a stub for the model, and the errors that the event loop reported."""

    def __init__(self, package: Path, sink: int) -> None:
        scorer = load(package, 1000)
        self.scored: list[bytes] = []
        self.errors: list[str] = []
        scorer.score = self.score  # type: ignore[method-assign]
        settings, metrics = Settings(package=package), SharedMetrics(1)
        self.executor = ThreadExecutor(
            scorer.score, scorer.cancel, lambda: None, max_queue=8, queue_timeout=1, timeout=1
        )
        self.executor.latency.add_thread_sample(100, 0.00001)
        keys, log = KeyRing(None, ""), JsonLog(sink, print)
        self.service = Service(settings, scorer, self.executor, keys, log, metrics.workers[0], metrics)

    def score(self, body: bytes) -> tuple[bytes, int]:
        self.scored.append(body)
        return b'{"result": [1.0]}', 1

    def connect(self, transport: Transport | None = None) -> tuple[Connection, Transport]:
        """Connect a client."""
        connection, transport = Connection(self.service), transport or Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    async def run_callbacks(self) -> None:
        """Let the event loop run what was scheduled."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: self.errors.append(str(context["message"])))
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def harness(linear: Path) -> Iterator[Harness]:
    """A harness whose log goes nowhere."""
    sink = os.open(os.devnull, os.O_WRONLY)
    yield Harness(linear, sink)
    os.close(sink)


def run_batch(harness: Harness, arrive: Callable[[], None]) -> None:
    """Let requests arrive in one iteration of the event loop, then run the following ones."""

    async def run() -> None:
        arrive()
        await harness.run_callbacks()

    asyncio.run(run())


def test_all_requests_of_a_batch_are_read_before_the_first_is_scored(harness: Harness) -> None:
    """Their bodies count as held until then. Each gets its answer."""
    clients = [harness.connect() for _ in range(3)]
    held: list[int] = []

    def arrive() -> None:
        for connection, _ in clients:
            connection.data_received(request("POST", "/score", BODY))
        held.append(harness.service.held)
        assert harness.scored == []

    run_batch(harness, arrive)
    assert ([3 * len(BODY)], 0) == (held, harness.service.held)
    assert [BODY] * 3 == harness.scored
    assert [transport.written.count(b"HTTP/1.1 200") for _, transport in clients] == [1, 1, 1]


def test_a_response_that_cannot_be_written_costs_its_own_connection(harness: Harness) -> None:
    """The other requests of that batch get theirs."""

    class Broken(Transport):
        def write(self, data: bytes) -> None:
            raise MemoryError

    clients = [harness.connect(), harness.connect(Broken()), harness.connect()]

    def arrive() -> None:
        for connection, _ in clients:
            connection.data_received(request("POST", "/score", BODY))

    run_batch(harness, arrive)
    assert [transport.written.count(b"HTTP/1.1 200") for _, transport in clients] == [1, 0, 1]
    assert clients[1][1].ended == "cut"
    assert harness.errors == ["a response could not be written"]


def test_requests_of_a_client_that_has_disconnected_are_not_scored(harness: Harness) -> None:
    """Nobody would read the answer."""
    connection, _ = harness.connect()

    def arrive() -> None:
        connection.data_received(request("POST", "/score", BODY))
        connection.connection_lost(None)

    run_batch(harness, arrive)
    assert (harness.scored, harness.service.held) == ([], 0)


def test_a_model_that_has_become_slow_leaves_the_event_loop_with_the_rest_of_the_batch(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five slow samples in a row the rest goes to the thread, whose queue is limited."""
    clock = iter(range(1000))
    monkeypatch.setattr(service_module, "_clock", lambda: next(clock) / 100)
    monkeypatch.setattr(service_module, "INLINE_SECONDS", 1000.0)
    submitted: list[Job] = []
    monkeypatch.setattr(harness.executor, "submit", submitted.append)
    clients = [harness.connect() for _ in range(8)]

    def arrive() -> None:
        for connection, _ in clients:
            connection.data_received(request("POST", "/score", BODY))

    run_batch(harness, arrive)
    assert (len(harness.scored), len(submitted)) == (5, 3)
