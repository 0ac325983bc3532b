"""HTTP/1.1 on one connection: requests read within limits, answers written in order. httptools (llhttp) parses."""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from scoring_service.errors import RequestError, plain

LINGER = 2.0
"""Seconds that a connection which is to be closed still takes in what the client has sent: closing earlier would reset
it, and the answer could be lost."""

_SMALL = 64 * 1024
"""Bytes of a refused body that are read to the end, so that the connection can be kept."""

_MOST_HEADERS = 100

_KEPT_HEADERS = frozenset(
    (
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"traceparent",
        b"transfer-encoding",
        b"x-request-id",
    )
)

_SINGLE = frozenset(
    (b"authorization", b"content-encoding", b"content-length", b"content-type", b"host", b"transfer-encoding")
)
"""Headers of which two could be read in two ways, by us and by whoever stands before us."""

_NEVER = float("inf")

_HEADS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Request:
    """One request as far as it has been read. ``refusal`` is why it is not going to be served."""

    __slots__ = (
        "method",
        "target",
        "headers",
        "body",
        "parts",
        "size",
        "keep_alive",
        "refusal",
        "started",
        "request_id",
        "route",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes = b""
        self.parts: list[bytes] = []
        self.size = 0
        self.keep_alive = True
        self.refusal: RequestError | None = None
        self.started = 0.0
        self.request_id = b""
        self.route = "other"


class Handler(Protocol):
    """What serves the requests of all connections of a worker."""

    max_body: int
    max_held: int
    """Bytes of bodies that have begun and not ended, over all connections."""
    held: int
    max_header: int
    read_timeout: float
    idle_timeout: float
    now: float
    """Seconds, brought up to date about once a second: good enough for timeouts, and free."""
    draining: bool
    cut: int
    """Connections ended before the client had taken in its answers."""

    def admit(self, connection: Connection, request: Request) -> RequestError | None:
        """Why a request of which only the head has come is refused; None when its body may come."""

    def serve(self, connection: Connection, request: Request) -> bool:
        """Answer through ``connection.answer``; False when the answer comes later, and is then ended by ``done``."""

    def refuse(self, connection: Connection, request: Request, error: RequestError) -> None:
        """Answer a request with an error."""

    def opened(self, connection: Connection) -> bool:
        """Take note of a connection; False when there are too many."""

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""


class Connection(asyncio.Protocol):
    """One client. Requests that arrive while one is being answered wait, and reading stops until they are through."""

    __slots__ = (
        "_handler",
        "_transport",
        "_parser",
        "_request",
        "_head_done",
        "_head_size",
        "_headers",
        "_raw_size",
        "_waiting",
        "_busy",
        "_blocked",
        "_closing",
        "_sending",
        "_ended",
        "deadline",
        "_alive",
        "_upgrading",
        "_held",
        "_twice",
        "is_surplus",
    )

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None
        self._head_done = False
        self._head_size = self._headers = self._raw_size = self._held = 0
        self._twice = b""
        self.is_surplus = False
        """Whether there were too many already: it may ask for the service's health, once."""
        self._waiting: deque[Request] = deque()
        self._busy: Request | None = None
        self._blocked = False
        self._closing = False
        self._sending = False
        self._ended = False
        self._alive = False
        self._upgrading: Request | None = None
        self.deadline = _NEVER

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._alive = True
        self.deadline = self._handler.now + self._handler.idle_timeout
        if not self._handler.opened(self):
            self._refuse(too_many_connections())
        elif self.is_surplus:
            self.deadline = self._handler.now + LINGER

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._closing:
            return
        self._raw_size += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if not self._closing:
                self._refuse(RequestError(400, "bad_request", f"this is not HTTP/1.1 ({_reason(error)})"))
        if self._raw_size > self._handler.max_header and self._request is not None and not self._closing:
            self._refuse(head_too_large(self._handler.max_header))
        if self._waiting:
            self._advance()

    def eof_received(self) -> bool:
        """The client sends no more; it may still wait for answers."""
        self._ended = True
        return bool(self._busy or self._waiting) and not self._closing

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._alive = False
        self._closing = True
        self._waiting.clear()
        self._release()
        self.deadline = _NEVER
        self._handler.closed(self)

    def pause_writing(self) -> None:
        """The client does not take in what it asked for."""
        self._blocked = True
        self.deadline = self._handler.now + self._handler.read_timeout
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._blocked = False
        self._advance()

    # Called by the parser

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._closing:
            return
        self._request = Request()
        self._head_done = False
        self._twice = b""
        self._head_size = self._headers = self._raw_size = 0
        self.deadline = self._handler.now + self._handler.read_timeout

    def on_url(self, part: bytes) -> None:
        """A part of the request's target."""
        if self._request is not None:
            self._request.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer after a chunked body."""
        self._headers += 1
        self._head_size += len(name) + len(value) + 4
        request = self._request
        if request is not None and not self._head_done:
            name = name.lower()
            if name in _KEPT_HEADERS:
                if name in request.headers and name in _SINGLE:
                    self._twice = name
                request.headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is complete: decide whether the body is wanted."""
        self._head_done = True
        self._raw_size = 0
        request = self._request
        if request is None or self._closing:
            return
        request.method = self._parser.get_method()
        version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive() and version == "1.1"
        error = self._head_error(request, version)
        if error is None and self._parser.should_upgrade() and _can_be_read_anew(request, version):
            self._upgrading, self._request = request, None
            return
        error = error or self._handler.admit(self, request)
        if self.is_surplus:
            request.keep_alive = False
        if error is not None:
            self._refuse_body(request, error)
        elif b"expect" in request.headers and self._busy is None and not self._waiting:
            self._welcome(request)

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        self._raw_size = 0
        request = self._request
        if request is None or self._closing:
            return
        request.size += len(part)
        limit = _SMALL if request.refusal is not None else self._handler.max_body
        if request.size > limit:
            self._refuse(request.refusal or too_large(self._handler.max_body))
        elif request.refusal is None:
            request.parts.append(part)
            self._held += len(part)
            self._handler.held += len(part)
            if self._handler.held > self._handler.max_held:
                self._refuse(RequestError(503, "too_many_bodies", "too many bodies are on their way", retry_after=1))

    def on_message_complete(self) -> None:
        """The request is complete."""
        request, self._request = self._request, None
        self._release()
        if request is None or self._closing:
            return
        request.body = request.parts[0] if len(request.parts) == 1 else b"".join(request.parts)
        if self._busy is not None or self._blocked or self._waiting or self._handler.draining:
            self._waiting.append(request)
            self._transport.pause_reading()
        else:
            self._serve(request)

    # Called by the handler

    def answer(self, request: Request, status: int, fields: bytes, body: bytes) -> None:
        """Write an answer: ``fields`` are whole header lines."""
        if not self._alive:
            return
        last = not self._waiting and self._request is None
        close = not request.keep_alive or (self._handler.draining and last)
        ending = b"Connection: close\r\n" if close else b""
        shown = b"" if request.method == b"HEAD" else body
        head = b"%b%b%bContent-Length: %d\r\n\r\n" % (_HEADS[status], fields, ending, len(body))
        self._transport.write(head + shown)
        if close:
            self._close_softly()

    def done(self) -> None:
        """The request for which ``serve`` was False has been answered."""
        self._busy = None
        if self._alive and not self._closing:
            self._advance()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, not even the beginning of one."""
        return self._busy is None and self._request is None and not self._waiting and not self._blocked

    @property
    def is_alive(self) -> bool:
        """Whether there is still somebody to answer."""
        return self._alive

    def check(self, now: float) -> None:
        """End what takes too long: an idle connection, a request that does not come, answers that are not taken in."""
        if self._sending and not self._transport.get_write_buffer_size():
            self._sending = False
            self.deadline = now + LINGER
        if now < self.deadline:
            return
        if self._closing or self._blocked:
            if self._transport.get_write_buffer_size():
                self._handler.cut += 1
            self._transport.abort()
        elif self._request is not None:
            self._refuse(RequestError(408, "request_timeout", "the request did not come to its end in time"))
        elif self.is_idle:
            self._close_softly()

    def close(self) -> None:
        """End an idle connection."""
        self._close_softly()

    def abort(self) -> None:
        """End the connection whatever it is doing."""
        self._transport.abort()

    # Inside

    def _feed(self, data: bytes) -> None:
        """Let the parser read; a request that wants another protocol is read anew as one that does not."""
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self._upgrading is None:  # what follows cannot be read
                    self._no_more()
                    return
                request, self._upgrading = self._upgrading, None
                self._parser = httptools.HttpRequestParser(self)  # llhttp reads no body after such a head
                start = upgrade.args[0]
                data = _head(request) + data[start:]

    def _serve(self, request: Request) -> None:
        self.deadline = _NEVER
        if request.refusal is not None:
            self._handler.refuse(self, request, request.refusal)
        elif not self._handler.serve(self, request):
            self._busy = request
            return
        if not self._closing:
            self._idle()

    def _welcome(self, request: Request) -> None:
        """Ask for the body of whoever waits to be asked; once, and after the answers that are due."""
        if request.headers.pop(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _idle(self) -> None:
        if self._blocked:
            self.deadline = self._handler.now + self._handler.read_timeout
        else:
            timeout = self._handler.idle_timeout if self._request is None else self._handler.read_timeout
            self.deadline = self._handler.now + timeout

    def _advance(self) -> None:
        """Serve what has waited, then read on."""
        while self._waiting and self._busy is None and not self._blocked and not self._closing:
            self._serve(self._waiting.popleft())
        if not self._alive or self._closing or self._busy is not None or self._waiting or self._blocked:
            return
        if self._ended:
            self._close_softly()
            return
        self._idle()
        self._transport.resume_reading()
        if self._request is not None and self._head_done and self._request.refusal is None:
            self._welcome(self._request)

    def _head_error(self, request: Request, version: str) -> RequestError | None:
        limit = self._handler.max_header
        if len(request.target) > limit // 2:
            return RequestError(414, "target_too_long", f"the target may have {limit // 2} bytes")
        if self._head_size > limit or self._headers > _MOST_HEADERS:
            return head_too_large(limit)
        if version not in ("1.1", "1.0"):
            return RequestError(505, "bad_request", "the service speaks HTTP/1.1")
        if b"host" not in request.headers and version == "1.1":
            return RequestError(400, "bad_request", "the request has no Host header")
        if self._twice:
            return RequestError(400, "bad_request", f"the header {self._twice.decode()} is there twice")
        if request.headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            return RequestError(501, "bad_request", "the only transfer coding that can be read is chunked")
        if request.headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            return RequestError(417, "bad_request", "the only expectation that can be met is 100-continue")
        return None

    def _refuse_body(self, request: Request, error: RequestError) -> None:
        """Refuse at once what would be long; let a short body pass, so that the connection can be kept."""
        request.refusal = error
        length = request.headers.get(b"content-length", b"0")
        expects = b"expect" in request.headers
        chunked = b"transfer-encoding" in request.headers  # no length, and trailers of any size
        if error.status in (414, 431) or expects or chunked or len(length) > 6 or int(length) > _SMALL:
            self._refuse(error)

    def _refuse(self, error: RequestError) -> None:
        """Answer with an error and close: what the client goes on to send is not read as a request."""
        request = self._request or Request()
        self._request = None
        self._release()
        request.keep_alive = False
        request.refusal = error
        if self._busy is not None or self._waiting:
            self._waiting.append(request)  # after the answers that are due
            self._transport.pause_reading()
        else:
            self._handler.refuse(self, request, error)

    def _release(self) -> None:
        """What has been read of a body is passed on, or dropped."""
        self._handler.held -= self._held
        self._held = 0

    def _no_more(self) -> None:
        if self._waiting:
            self._waiting[-1].keep_alive = False
        elif self._busy is not None:
            self._busy.keep_alive = False
        else:
            self._close_softly()

    def _close_softly(self) -> None:
        """Send what is written and the end of it; take in for a while what the client still sends.

        A client that reads slowly has as long for the last answer as for any; LINGER begins when all is sent.
        """
        if not self._alive or self._closing:
            return
        self._closing = True
        self._waiting.clear()
        self._request = None
        self._release()
        self._sending = self._transport.get_write_buffer_size() > 0
        self.deadline = self._handler.now + (self._handler.read_timeout if self._sending else LINGER)
        if self._ended:
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()


def _can_be_read_anew(request: Request, version: str) -> bool:
    """HTTP/1.0 knows no upgrade, and CONNECT is one in itself."""
    return request.method != b"CONNECT" and version == "1.1"


def _head(request: Request) -> bytes:
    """The head of a request again, as far as it matters here."""
    fields = b"".join(b"%b: %b\r\n" % field for field in request.headers.items())
    ending = b"" if request.keep_alive else b"Connection: close\r\n"
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (request.method, request.target, fields, ending)


def too_many_connections() -> RequestError:
    """One connection over the limit."""
    return RequestError(503, "too_many_connections", "too many connections are open", retry_after=1)


def too_large(limit: int) -> RequestError:
    """A body over the limit."""
    return RequestError(413, "body_too_large", f"the body may have {limit} bytes")


def head_too_large(limit: int) -> RequestError:
    """Headers over the limit."""
    return RequestError(431, "header_too_large", f"the headers may have {limit} bytes and be {_MOST_HEADERS}")


def _reason(error: Exception) -> str:
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    return plain(str(cause)[:100]) or type(cause).__name__
