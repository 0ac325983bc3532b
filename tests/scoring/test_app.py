"""Short requests that come together: scored one behind the other in the event loop, then answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import scoring_service.http.app as service_module
from scoring_service.executor import Lane
from scoring_service.http.app import Service
from scoring_service.http.protocol import Connection
from scoring_service.json_log import Journal
from scoring_service.keys import KeyRing
from scoring_service.metrics import SharedMetrics
from scoring_service.model.package import load
from scoring_service.settings import Settings
from tests.scoring.test_protocol import Transport
from tests.support.scoring_server import request

BODY = b'{"data": [[1, 2, 3]]}'


class Desk:
    """A service without sockets, a model of the test's own, and what was logged as an error of the loop."""

    def __init__(self, package: Path, sink: int) -> None:
        scorer = load(package, 1000)
        self.scored: list[bytes] = []
        self.errors: list[str] = []
        scorer.score = self.score  # type: ignore[method-assign]
        settings, metrics = Settings(package=package), SharedMetrics(1)
        journal = Journal(sink, print)
        self.service = Service(settings, scorer, KeyRing(None, ""), journal, metrics.workers[0], metrics)
        self.service.pace.saw_in_thread(100, 0.00001)

    def score(self, body: bytes) -> tuple[bytes, int]:
        self.scored.append(body)
        return b'{"result": [1.0]}', 1

    def connect(self, transport: Transport | None = None) -> tuple[Connection, Transport]:
        """A client that is connected."""
        made, transport = Connection(self.service), transport or Transport()
        made.connection_made(transport)  # type: ignore[arg-type]
        return made, transport

    async def later(self) -> None:
        """What the event loop does next."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: self.errors.append(str(context["message"])))
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def desk(linear: Path) -> Iterator[Desk]:
    """The log goes nowhere."""
    sink = os.open(os.devnull, os.O_WRONLY)
    yield Desk(linear, sink)
    os.close(sink)


def turn(desk: Desk, come: Callable[[], None]) -> None:
    """Requests come in one look at the sockets; then the loop goes on."""

    async def run() -> None:
        come()
        await desk.later()

    asyncio.run(run())


def test_all_that_came_is_read_before_the_first_is_scored(desk: Desk) -> None:
    """And counts as held until then; each gets its answer."""
    clients = [desk.connect() for _ in range(3)]
    held: list[int] = []

    def come() -> None:
        for connection, _ in clients:
            connection.data_received(request("POST", "/score", BODY))
        held.append(desk.service.held)
        assert desk.scored == []

    turn(desk, come)
    assert ([3 * len(BODY)], 0) == (held, desk.service.held)
    assert [BODY] * 3 == desk.scored
    assert [1, 1, 1] == [transport.written.count(b"HTTP/1.1 200") for _, transport in clients]


def test_an_answer_that_fails_costs_its_own_connection(desk: Desk) -> None:
    """The others of that turn get theirs."""

    class Broken(Transport):
        def write(self, data: bytes) -> None:
            raise MemoryError

    clients = [desk.connect(), desk.connect(Broken()), desk.connect()]

    def come() -> None:
        for connection, _ in clients:
            connection.data_received(request("POST", "/score", BODY))

    turn(desk, come)
    assert [1, 0, 1] == [transport.written.count(b"HTTP/1.1 200") for _, transport in clients]
    assert "cut" == clients[1][1].ended
    assert ["an answer could not be given"] == desk.errors


def test_a_client_that_has_gone_is_not_scored_for(desk: Desk) -> None:
    """Nobody waits for its answer."""
    connection, _ = desk.connect()

    def come() -> None:
        connection.data_received(request("POST", "/score", BODY))
        connection.connection_lost(None)

    turn(desk, come)
    assert ([], 0) == (desk.scored, desk.service.held)


def test_a_model_that_has_become_slow_leaves_the_loop_with_what_waits(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five slow ones in a row the rest goes to the thread, in whose queue it is limited."""
    clock = iter(range(1000))
    monkeypatch.setattr(service_module, "_clock", lambda: next(clock) / 100)
    monkeypatch.setattr(service_module, "INLINE_SECONDS", 1000.0)
    given: list[Any] = []
    lane = object.__new__(Lane)
    monkeypatch.setattr(lane, "submit", given.append, raising=False)
    desk.service.lane = lane
    clients = [desk.connect() for _ in range(8)]

    def come() -> None:
        for connection, _ in clients:
            connection.data_received(request("POST", "/score", BODY))

    turn(desk, come)
    assert (5, 3) == (len(desk.scored), len(given))
