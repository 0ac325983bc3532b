"""One connection by itself: what it reads from any pieces, and when it ends, on a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from scoring_service.errors import RequestError
from scoring_service.http.protocol import LINGER, Connection
from scoring_service.http.request import Request
from tests.support.scoring_server import request


class Transport:
    """Keeps what is written; ``unsent`` bytes are said to wait for the client."""

    def __init__(self) -> None:
        self.written = b""
        self.unsent = 0
        self.ended = ""

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write_eof(self) -> None:
        self.ended = "softly"

    def abort(self) -> None:
        self.ended = "cut"

    def close(self) -> None:
        self.ended = "closed"

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Handler:
    """Answers every request with its body, or keeps it for ``later``."""

    max_body = 100_000
    max_held = 100_000
    held = 0
    max_header = 2_000
    read_timeout = 30.0
    idle_timeout = 75.0
    now = 1000.0
    draining = False
    cut = 0
    is_slow = False

    def __init__(self) -> None:
        self.later: list[Request] = []
        self.refused: list[str] = []

    def admit(self, connection: Connection, request: Request) -> RequestError | None:
        return None

    def serve(self, connection: Connection, request: Request) -> bool:
        if self.is_slow:
            self.later.append(request)
        else:
            connection.answer(request, 200, b"", request.body)
        return not self.is_slow

    def refuse(self, connection: Connection, request: Request, error: RequestError) -> None:
        self.refused.append(error.code)
        connection.answer(request, error.status, b"", b"")

    def opened(self, connection: Connection) -> bool:
        return True

    def closed(self, connection: Connection) -> None: ...


@pytest.fixture
def handler() -> Handler:
    """What serves."""
    return Handler()


@pytest.fixture
def transport() -> Transport:
    """What is written to."""
    return Transport()


@pytest.fixture
def connection(handler: Handler, transport: Transport) -> Connection:
    """A client has connected."""
    made: Any = Connection(handler)
    made.connection_made(transport)
    return made  # type: ignore[no-any-return]


def test_the_second_of_two_heads_is_not_charged_for_what_comes_with_it(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """The end of one request, a whole large one and half of a third in one read: all within their limits."""
    first, large = request("POST", "/score", b"1"), request("POST", "/score", b"2" * 50_000)
    connection.data_received(first[:-1])
    connection.data_received(first[-1:] + large + first[:-20])
    connection.data_received(first[-20:])
    assert handler.refused == []
    assert transport.written.count(b"HTTP/1.1 200") == 3


def test_bodies_that_have_begun_are_limited_together(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """Over all connections: whoever brings too much is refused, and what is refused, lost or done is not counted on."""
    half = request("POST", "/score", b"1" * 80_000)[:60_000]
    other: Any = Connection(handler)
    other.connection_made(Transport())
    connection.data_received(half)
    assert 0 < handler.held < 60_000
    other.data_received(half)
    assert handler.refused == ["too_many_bodies"]
    connection.data_received(b"1" * 20_000 + b"1" * 200)
    connection.connection_lost(None)
    assert transport.written.count(b"HTTP/1.1 200") == 1
    assert handler.held == 0


def test_a_head_that_does_not_end_is_refused(connection: Connection, handler: Handler) -> None:
    """Before it has piled up."""
    connection.data_received(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(3):
        connection.data_received(b"x" * 900)
    assert handler.refused == ["header_too_large"]


def test_whole_requests_that_have_come_are_answered_while_stopping(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """Pipelined ones too; only the last answer is a farewell."""
    handler.draining = True
    connection.data_received(b"".join(request("POST", "/score", body) for body in (b"1", b"2", b"3")))
    assert [part[:1] for part in transport.written.split(b"\r\n\r\n")[1:]] == [b"1", b"2", b"3"]
    assert transport.written.count(b"Connection: close") == 1
    assert transport.written.index(b"Connection: close") > transport.written.index(b"\r\n\r\n2")
    assert transport.ended == "softly"


def test_requests_that_wait_for_the_model_are_answered_while_stopping(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """The stop came after them: those behind the one in the model have their turn."""
    handler.is_slow = True
    connection.data_received(b"".join(request("POST", "/score", body) for body in (b"1", b"2")))
    handler.draining = True
    for body in (b"1", b"2"):
        connection.answer(handler.later[-1], 200, b"", body)
        connection.done()
    assert transport.written.count(b"HTTP/1.1 200") == 2
    assert (transport.written.count(b"Connection: close"), transport.ended) == (1, "softly")


def test_a_slow_reader_has_time_for_the_last_answer(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """As long as for any other; the short time for the farewell begins when all is sent."""
    transport.unsent = 1_000_000
    connection.data_received(request("POST", "/score", b"1", {"Connection": "close"}))
    connection.check(handler.now + LINGER + 1)
    assert transport.ended == "softly"
    transport.unsent = 0
    connection.check(handler.now + 20)
    connection.check(handler.now + 20 + LINGER - 0.1)
    assert transport.ended == "softly"
    connection.check(handler.now + 20 + LINGER)
    assert (transport.ended, handler.cut) == ("cut", 0)


def test_an_answer_that_was_not_taken_in_is_counted(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """Whoever stops the service learns that somebody did not get all of it."""
    transport.unsent = 1_000_000
    connection.data_received(request("POST", "/score", b"1", {"Connection": "close"}))
    connection.check(handler.now + handler.read_timeout)
    assert (transport.ended, handler.cut) == ("cut", 1)


def test_what_was_pipelined_before_an_unreadable_request_is_answered(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """Two requests and a CONNECT in one read: all three get an answer, then the connection ends."""
    handler.is_slow = True
    good = request("POST", "/score", b"1")
    connection.data_received(good + good + b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n")
    answer_later(connection, handler)
    assert transport.written.count(b"HTTP/1.1 200") == 3
    assert transport.ended == "softly"


def test_a_body_is_asked_for_after_the_answers_that_are_due(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """A client that waits for ``100 Continue`` behind another request must not take it for an answer to that one."""
    handler.is_slow = True
    whole = request("POST", "/score", b"2", {"Expect": "100-continue"})
    connection.data_received(request("POST", "/score", b"1") + whole[:-1])
    assert transport.written == b""
    answer_later(connection, handler)
    assert transport.written.startswith(b"HTTP/1.1 200") and transport.written.endswith(b"100 Continue\r\n\r\n")
    connection.data_received(whole[-1:])
    answer_later(connection, handler)
    assert 1 == transport.written.count(b"100 Continue") and transport.written.endswith(b"2")


def test_a_client_that_has_ended_its_side_and_reads_nothing_is_cut_off(
    connection: Connection, handler: Handler, transport: Transport
) -> None:
    """Its last answer stays in the buffer: it has as long for it as any."""
    handler.is_slow = True
    connection.data_received(request("POST", "/score", b"1"))
    assert connection.eof_received()
    transport.unsent = 100
    answer_later(connection, handler)
    connection.check(handler.now + handler.read_timeout + 1)
    assert (transport.ended, handler.cut) == ("cut", 1)


def answer_later(connection: Connection, handler: Handler) -> None:
    """Answer all that was kept, also what comes to the handler by that."""
    while handler.later:
        kept = handler.later.pop(0)
        connection.answer(kept, 200, b"", kept.body)
        connection.done()
