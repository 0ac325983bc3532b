"""Read requests from the bytes of one connection, within limits. httptools (llhttp) parses."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import httptools

from scoring_service.errors import RequestError, plain

SMALL_BODY = 64 * 1024
"""Bytes of a refused body that are read to the end, so that the connection can be kept."""

_MAX_FIELDS = 100

_KEPT_FIELDS = frozenset(
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

_SINGLE_FIELDS = frozenset(
    (b"authorization", b"content-encoding", b"content-length", b"content-type", b"host", b"transfer-encoding")
)
"""Headers that must not be repeated: a proxy in front of us might use the other one (request smuggling)."""


class Request:
    """One request, as far as it has been read. ``refusal`` is the error that it will be answered with."""

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


class Limits(Protocol):
    """Sizes in bytes."""

    max_body: int
    max_header: int
    max_held: int
    """Limit of ``held``."""
    held: int
    """Bodies of all connections that have begun to arrive and are not complete."""


class Consumer(Protocol):
    """The callbacks of the reader, for the requests of a connection."""

    def on_request_begin(self) -> None:
        """The first byte of a request has arrived."""

    def on_head(self, request: Request, error: RequestError | None) -> None:
        """The head is complete; ``error`` says why it is invalid."""

    def on_request(self, request: Request) -> None:
        """The request is complete."""

    def on_refusal(self, error: RequestError) -> None:
        """The current request, or what should have been one, cannot be read. Nothing after it is."""

    def on_tunnel(self) -> None:
        """The bytes after the last request are of another protocol. They are not read."""


class Stage(IntEnum):
    """The part of a request that the next byte belongs to."""

    BETWEEN = 0
    HEAD = 1
    BODY = 2
    STOPPED = 3
    """Nothing: it is discarded."""


BETWEEN, HEAD, BODY, STOPPED = Stage


class RequestReader:
    """Parse the bytes of a connection and pass its requests to ``consumer``.

    It goes from BETWEEN to HEAD to BODY (which also stands for a body of no bytes, and for trailers) and back, until
    ``stop`` makes it discard everything.
    """

    __slots__ = (
        "request",
        "_stage",
        "_consumer",
        "_limits",
        "_parser",
        "_head_size",
        "_fields",
        "_uncounted",
        "_held",
        "_repeated",
        "_upgrading",
    )

    def __init__(self, consumer: Consumer, limits: Limits) -> None:
        self._consumer = consumer
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._stage = BETWEEN
        self.request: Request | None = None
        """The request that is being read."""
        self._head_size = self._fields = 0
        self._uncounted = 0
        """Bytes since the last progress: they may become a long head, or a long trailer."""
        self._held = 0
        self._repeated = b""
        self._upgrading: Request | None = None

    def feed(self, data: bytes) -> None:
        """Parse bytes that have arrived."""
        if self._stage is STOPPED:
            return
        self._uncounted += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if self._stage is not STOPPED:
                self._consumer.on_refusal(RequestError(400, "bad_request", f"this is not HTTP/1.1 ({_reason(error)})"))
        if self._uncounted > self._limits.max_header and self.request is not None:
            self._consumer.on_refusal(head_too_large(self._limits.max_header))

    def stop(self) -> Request | None:
        """Discard everything from now on. Return the request that was being read, if any."""
        request, self.request = self.request, None
        self._stage = STOPPED
        self._release()
        return request

    @property
    def awaited(self) -> Request | None:
        """The accepted request of which the head has arrived, but not the whole body."""
        request = self.request
        return request if request is not None and self._stage is BODY and request.refusal is None else None

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Read a request that offers another protocol again, as one that does not."""
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                request, self._upgrading = self._upgrading, None
                if request is None:
                    self.stop()
                    self._consumer.on_tunnel()
                    return
                self._parser = httptools.HttpRequestParser(self)  # llhttp reads no body after such a head
                start = upgrade.args[0]
                data = _head(request) + data[start:]

    # Called by the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._stage is STOPPED:
            return
        self.request = Request()
        self._stage = HEAD
        self._repeated = b""
        self._head_size = self._fields = self._uncounted = 0
        self._consumer.on_request_begin()

    def on_url(self, part: bytes) -> None:
        """Add a part of the target."""
        if self.request is not None:
            self.request.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer after a chunked body. Keep the headers that matter."""
        self._fields += 1
        self._head_size += len(name) + len(value) + 4
        request = self.request
        if request is not None and self._stage is HEAD:
            name = name.lower()
            if name in _KEPT_FIELDS:
                if name in request.headers and name in _SINGLE_FIELDS:
                    self._repeated = name
                request.headers[name] = value.rstrip(b" \t")  # llhttp leaves the blanks after a value in it

    def on_headers_complete(self) -> None:
        """Validate the head and pass it on."""
        self._uncounted = 0
        request = self.request
        if request is None:
            return
        self._stage = BODY
        request.method = self._parser.get_method()
        version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive() and version == "1.1"
        if version == "1.0":
            request.headers.pop(b"expect", None)  # RFC 9110, 10.1.1: such a client cannot know 100 Continue
        error = self._head_error(request, version)
        if error is None and self._parser.should_upgrade() and _can_ignore_upgrade(request, version):
            self._upgrading, self.request = request, None
            return
        self._consumer.on_head(request, error)

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body, within the limits. The body of a refused request is counted and discarded."""
        self._uncounted = 0
        request = self.request
        if request is None:
            return
        limits = self._limits
        request.size += len(part)
        if request.size > (limits.max_body if request.refusal is None else SMALL_BODY):
            self._consumer.on_refusal(request.refusal or too_large(limits.max_body))
        elif request.refusal is None:
            request.parts.append(part)
            self._held += len(part)
            limits.held += len(part)
            if limits.held > limits.max_held:
                message = "the bodies that are arriving are too large together"
                self._consumer.on_refusal(RequestError(503, "too_many_bodies", message, retry_after=1))

    def on_message_complete(self) -> None:
        """Pass the request on."""
        request, self.request = self.request, None
        self._release()
        if request is None:
            return
        self._stage = BETWEEN
        request.body = request.parts[0] if len(request.parts) == 1 else b"".join(request.parts)
        self._consumer.on_request(request)

    # Inside

    def _release(self) -> None:
        self._limits.held -= self._held
        self._held = 0

    def _head_error(self, request: Request, version: str) -> RequestError | None:
        limit = self._limits.max_header
        if len(request.target) > limit // 2:
            return RequestError(414, "target_too_long", f"the target may have {limit // 2} bytes")
        if self._head_size > limit or self._fields > _MAX_FIELDS:
            return head_too_large(limit)
        if version not in ("1.1", "1.0"):
            return RequestError(505, "bad_request", "invalid version: expected HTTP/1.1")
        if b"host" not in request.headers and version == "1.1":
            return RequestError(400, "bad_request", "the request has no Host header")
        if self._repeated:
            return RequestError(400, "bad_request", f"the header {self._repeated.decode()} is repeated")
        if request.headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            return RequestError(501, "bad_request", "invalid transfer coding: expected chunked")
        if request.headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            return RequestError(417, "bad_request", "invalid expectation: expected 100-continue")
        return None


def _can_ignore_upgrade(request: Request, version: str) -> bool:
    """Return whether the request can be read as one without upgrade. HTTP/1.0 has none, and CONNECT is one itself."""
    return request.method != b"CONNECT" and version == "1.1"


def _head(request: Request) -> bytes:
    """Return the head of a request again, without the upgrade."""
    fields = b"".join(b"%b: %b\r\n" % field for field in request.headers.items())
    ending = b"" if request.keep_alive else b"Connection: close\r\n"
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (request.method, request.target, fields, ending)


def too_large(limit: int) -> RequestError:
    """Return the error of a body over the limit."""
    return RequestError(413, "body_too_large", f"the body may have {limit} bytes")


def head_too_large(limit: int) -> RequestError:
    """Return the error of a head over the limit."""
    return RequestError(431, "header_too_large", f"the headers may have {limit} bytes and be {_MAX_FIELDS}")


def _reason(error: Exception) -> str:
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    return plain(str(cause)[:100]) or type(cause).__name__
