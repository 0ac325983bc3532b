"""HTTP/1.1 on one connection.

Theory of operation
===================

``RequestReader`` (request.py) turns bytes into requests; ``Connection`` decides when each is served, writes the answers
in the order of the requests, and ends the connection. One state says what it does:

    IDLE        no request has begun. Ends after ``idle_timeout``.
    READING     a request is arriving, and none waits for an answer. 408 after ``read_timeout``.
    ANSWERING   requests are complete and not answered: one may be with the handler (``_current``), others wait behind
                it (``_waiting``). The handler has timeouts of its own, so there is none here, except for a request
                that has begun to arrive meanwhile.
    FLUSHING    the last answer is written, but the client has not taken all of it. ``read_timeout`` from the answer.
    LINGERING   everything is sent, and our end of the stream as well. What still arrives is discarded. LINGER seconds.
    CLOSED      the transport is gone.

    event                            IDLE       READING              ANSWERING            FLUSHING, LINGERING
    -------------------------------  ---------  -------------------  -------------------  -------------------
    first byte of a request          READING    (not possible)       stays (pipelining)   discarded
    request complete                 (not p.)   serve: IDLE if       wait; stop reading   discarded
                                                answered at once,
                                                else ANSWERING
    refusal: invalid, too large,     answer, FLUSHING or LINGERING   wait; read no more   discarded
      too slow, too many
    answer written                   IDLE, or READING if the next request has begun; next of ``_waiting`` first
    answer with Connection: close    FLUSHING, or LINGERING if nothing is unsent          (not possible)
    client ends its side             CLOSED     CLOSED               answer, then CLOSED  CLOSED
    deadline                         LINGERING  refusal with 408     refusal with 408     CLOSED
    transport lost                   CLOSED     CLOSED               CLOSED               CLOSED

Three flags are independent of the state:

``_is_blocked``   The transport's buffer is full, because the client does not take the answers. It may be so in every
                  state. While it lasts, nothing is read or served, and the client has ``read_timeout`` to go on.
``_has_ended``    The client has ended its side (half-close). Complete requests are still answered.
``is_surplus``    There were too many connections when it was opened. It may request the health routes, once.

Pipelining. Requests are served one at a time. A chunk of data may hold many: those behind the first wait, and reading
stops until all are answered, so that at most one chunk per connection is held. While the service drains, requests
wait until the whole chunk is read: only then is it known which answer is the last and says ``Connection: close``.

Refusals. A refused request without a long body is read to its end, so that the connection can be kept. Otherwise the
answer says ``Connection: close`` and nothing after it is read as a request. It still waits for its turn.

Lingering close. Closing a socket with unread data sends a RST, and the client may lose an answer that it has not read.
So we end our side first, then read and discard for LINGER seconds. Time counts from when all is sent: a client that
reads slowly has ``read_timeout`` for its last answer, as for any other.

``Expect: 100-continue``. The client waits for 100 before it sends the body. It gets it when all answers before it are
written, since a 100 between them would be taken for an answer. A refusal comes in place of it.

HTTP/1.0. Answered as HTTP/1.1 with ``Connection: close``. ``Expect`` is ignored.

Time. ``check`` is called about once a second and compares ``deadline`` with the handler's clock. Nothing else is needed
per request than to set it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum
from http import HTTPStatus
from typing import Protocol, cast

from scoring_service.errors import RequestError
from scoring_service.http.request import SMALL_BODY, Limits, Request, RequestReader

LINGER = 2.0
"""Seconds of the lingering close."""

_NEVER = float("inf")

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class State(IntEnum):
    """See the theory of operation. From FLUSHING on the connection is being closed."""

    IDLE = 0
    READING = 1
    ANSWERING = 2
    FLUSHING = 3
    LINGERING = 4
    CLOSED = 5


IDLE, READING, ANSWERING, FLUSHING, LINGERING, CLOSED = State


class Handler(Limits, Protocol):
    """Serves the requests of all connections of a worker."""

    read_timeout: float
    idle_timeout: float
    now: float
    """Seconds, updated about once a second: good enough for timeouts, and free."""
    draining: bool
    cut: int
    """Connections ended before the client had taken all of its answers."""

    def admit(self, connection: Connection, request: Request) -> RequestError | None:
        """Return the error for a request of which only the head has arrived, or None if its body is welcome."""

    def serve(self, connection: Connection, request: Request) -> bool:
        """Answer with ``connection.answer``. Return False if the answer comes later, followed by ``done``."""

    def refuse(self, connection: Connection, request: Request, error: RequestError) -> None:
        """Answer a request with an error."""

    def opened(self, connection: Connection) -> bool:
        """Register a connection. Return False if there are too many."""

    def closed(self, connection: Connection) -> None:
        """Unregister a connection."""


class Connection(asyncio.Protocol):
    """One client. It is the protocol of asyncio's transport and the consumer of the reader's requests."""

    __slots__ = (
        "_handler",
        "_transport",
        "_reader",
        "_state",
        "_current",
        "_waiting",
        "_is_blocked",
        "_has_ended",
        "is_surplus",
        "deadline",
    )

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._reader = RequestReader(self, handler)
        self._state = IDLE
        self._current: Request | None = None
        self._waiting: deque[Request] = deque()
        self._is_blocked = False
        self._has_ended = False
        self.is_surplus = False
        self.deadline = _NEVER

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.deadline = self._handler.now + self._handler.idle_timeout
        if not self._handler.opened(self):
            self.on_refusal(too_many_connections())
        elif self.is_surplus:
            self.deadline = self._handler.now + LINGER

    def data_received(self, data: bytes) -> None:
        """Read requests. Serve those that have waited for the end of the chunk."""
        self._reader.feed(data)
        if self._waiting:
            self._advance()

    def eof_received(self) -> bool:
        """Note that the client sends no more. Return whether it still waits for answers."""
        self._has_ended = True
        return self._state is ANSWERING

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the client."""
        self._state = CLOSED
        self._waiting.clear()
        self._reader.stop()
        self.deadline = _NEVER
        self._handler.closed(self)

    def pause_writing(self) -> None:
        """Stop reading: the client does not take its answers."""
        self._is_blocked = True
        self.deadline = self._handler.now + self._handler.read_timeout
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on: the client has taken its answers."""
        self._is_blocked = False
        self._advance()

    # Called by the reader

    def on_request_begin(self) -> None:
        """Give the request ``read_timeout`` to arrive."""
        if self._state is IDLE:
            self._state = READING
        self.deadline = self._handler.now + self._handler.read_timeout

    def on_head(self, request: Request, error: RequestError | None) -> None:
        """Decide whether the body is welcome."""
        error = error or self._handler.admit(self, request)
        if self.is_surplus:
            request.keep_alive = False
        if error is not None:
            request.refusal = error
            if _is_long(request, error):
                self.on_refusal(error)
        elif b"expect" in request.headers and self._state is READING:
            self._continue(request)

    def on_request(self, request: Request) -> None:
        """Serve the request, or let it wait."""
        if self._state is ANSWERING or self._is_blocked or self._handler.draining:
            self._wait(request)
        else:
            self._serve(request)

    def on_refusal(self, error: RequestError) -> None:
        """Answer with an error and close, after the answers that are due."""
        request = self._reader.stop() or Request()
        request.keep_alive = False
        request.refusal = error
        if self._state is ANSWERING:
            self._wait(request)
        else:
            self._handler.refuse(self, request, error)

    def on_tunnel(self) -> None:
        """Close after the answers that are due."""
        last = self._waiting[-1] if self._waiting else self._current
        if last is not None:
            last.keep_alive = False
        else:
            self.close()

    # Called by the handler

    def answer(self, request: Request, status: int, fields: bytes, body: bytes) -> None:
        """Write an answer. ``fields`` are whole header lines."""
        if self._state is CLOSED:
            return
        is_last = not self._waiting and self._reader.request is None
        close = not request.keep_alive or (self._handler.draining and is_last)
        ending = b"Connection: close\r\n" if close else b""
        content = b"" if request.method == b"HEAD" else body
        head = b"%b%b%bContent-Length: %d\r\n\r\n" % (_STATUS_LINES[status], fields, ending, len(body))
        self._transport.write(head + content)
        if close:
            self.close()

    def done(self) -> None:
        """Go on after the answer to a request for which ``serve`` returned False."""
        self._current = None
        self._advance()

    @property
    def is_idle(self) -> bool:
        """Return whether no request has begun and all responses are taken."""
        return self._state is IDLE and not self._is_blocked

    @property
    def is_alive(self) -> bool:
        """Return whether the client can still get a response."""
        return self._state is not CLOSED

    def check(self, now: float) -> None:
        """End, at its timeout, an idle connection, a request that does not arrive, or a response that is not taken."""
        if self._state is FLUSHING and not self._transport.get_write_buffer_size():
            self._state = LINGERING
            self.deadline = now + LINGER
        if now < self.deadline:
            return
        if self._state >= FLUSHING or self._is_blocked:
            if self._transport.get_write_buffer_size():
                self._handler.cut += 1
            self._transport.abort()
        elif self._reader.request is not None:
            self.on_refusal(RequestError(408, "request_timeout", "the request was not complete in time"))
        elif self._state is IDLE:
            self.close()

    def close(self) -> None:
        """Send what is written and the end of the stream, then discard what still arrives (lingering close)."""
        if self._state >= FLUSHING:
            return
        self._waiting.clear()
        self._reader.stop()
        self._state = FLUSHING if self._transport.get_write_buffer_size() else LINGERING
        self.deadline = self._handler.now + (self._handler.read_timeout if self._state is FLUSHING else LINGER)
        if self._has_ended:
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    # Inside

    def _wait(self, request: Request) -> None:
        self._state = ANSWERING
        self._waiting.append(request)
        self._transport.pause_reading()

    def _serve(self, request: Request) -> None:
        self.deadline = _NEVER
        if request.refusal is not None:
            self._handler.refuse(self, request, request.refusal)
        elif not self._handler.serve(self, request):
            self._state = ANSWERING
            self._current = request
            return
        if self._state < FLUSHING:
            self._rest()

    def _rest(self) -> None:
        """Set state and deadline after an answer."""
        timeout = self._handler.read_timeout
        if self._waiting:
            self._state = ANSWERING
        elif self._reader.request is not None:
            self._state = READING
        else:
            self._state = IDLE
            if not self._is_blocked:
                timeout = self._handler.idle_timeout
        self.deadline = self._handler.now + timeout

    def _advance(self) -> None:
        """Serve what has waited, then read on."""
        while self._waiting and self._current is None and not self._is_blocked and self._state < FLUSHING:
            self._serve(self._waiting.popleft())
        if self._state >= FLUSHING or self._current is not None:
            return
        self._rest()
        if self._waiting or self._is_blocked:
            return
        if self._has_ended:
            self.close()
            return
        self._transport.resume_reading()
        if self._state is READING and self._reader.awaited is not None:
            self._continue(self._reader.awaited)

    def _continue(self, request: Request) -> None:
        """Ask for the body, once, if the client waits for that."""
        if request.headers.pop(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _is_long(request: Request, error: RequestError) -> bool:
    """Return whether the rest of a refused request is not worth reading, or of unknown length."""
    length = request.headers.get(b"content-length", b"0")
    is_chunked = b"transfer-encoding" in request.headers  # no length, and trailers of any size
    is_expecting = b"expect" in request.headers
    return error.status in (414, 431) or is_expecting or is_chunked or len(length) > 6 or int(length) > SMALL_BODY


def too_many_connections() -> RequestError:
    """Return the error of a connection over the limit."""
    return RequestError(503, "too_many_connections", "too many connections are open", retry_after=1)
