"""The application: routes, keys, scoring, error responses, and the log line and metrics of each request."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import msgspec

from scoring_service.errors import RequestError, plain
from scoring_service.executor import Job, Outcome, ThreadExecutor, abandoned
from scoring_service.http.openapi import describe
from scoring_service.http.protocol import Connection, too_many_connections
from scoring_service.http.request import Request, too_large
from scoring_service.json_log import JsonLog
from scoring_service.keys import KeyRing
from scoring_service.latency import INLINE_SECONDS
from scoring_service.metrics import SharedMetrics, WorkerMetrics
from scoring_service.model.scorer import Scorer
from scoring_service.settings import Settings

_JSON = b"Content-Type: application/json\r\n"
_TEXT = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"

_ROUTES = {
    b"/score": "score",
    b"/": "root",
    b"/health/live": "live",
    b"/health/ready": "ready",
    b"/swagger.json": "swagger",
    b"/metrics": "metrics",
    b"/model": "model",
}
_OPEN = frozenset(("root", "live", "ready", "other"))
"""Routes that need no key."""

_PROBED = frozenset(("live", "ready"))
_PROBE_CONNECTIONS = 16
"""Connections over the limit that may request the health routes: a busy service must not be taken for a dead one."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")

_encode = msgspec.json.Encoder().encode
_clock = time.perf_counter


class Service:
    """Serve the requests of one worker. It is the ``Handler`` of its connections.

    Requests that are expected to be short are scored in the event loop, in batches. All others go to ``executor``.
    """

    def __init__(
        self,
        settings: Settings,
        scorer: Scorer,
        executor: ThreadExecutor,
        keys: KeyRing,
        log: JsonLog,
        metrics: WorkerMetrics,
        shared: SharedMetrics,
    ) -> None:
        self.max_body = settings.max_body
        self.max_held = max(settings.max_bodies, settings.max_body)
        self.held = 0
        self.max_header = settings.max_header
        self.read_timeout = settings.read_timeout
        self.idle_timeout = settings.idle_timeout
        self.now = time.monotonic()
        self.draining = False
        self.cut = 0
        self.connections: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}
        """Connections on which no valid key has come, the oldest first."""
        self.keys = keys
        self._settings = settings
        self._score = scorer.score
        self._log = log
        self._metrics = metrics
        self._shared = shared
        self._inline = scorer.is_steady
        self._executor = executor
        self._latency = executor.latency
        self._due: deque[tuple[Connection, Request]] = deque()
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(6).encode()
        package = scorer.package
        self._identity = (package.name, package.version, package.sha256)
        self._version_field = _version_field(package.version)
        self._documents = {
            "root": b'{"status":"Healthy"}',
            "live": b'{"status":"live"}',
            "swagger": json.dumps(describe(package, settings.auth)).encode(),
            "model": json.dumps(_about(scorer)).encode(),
        }
        self.tick()

    def tick(self) -> None:
        """Update the clock and the Date header. Called about once a second."""
        self.now = time.monotonic()
        self._json_fields = _JSON + b"Date: " + formatdate(usegmt=True).encode() + b"\r\n"

    # Called by connections

    def opened(self, connection: Connection) -> bool:
        """Register a connection. Return False if there are too many."""
        self.connections.add(connection)
        over = len(self.connections) - self._settings.max_connections
        if over > 0 and self._strangers:
            # Strangers make room for whoever comes, the one that has been here for longest first. So neither clients
            # with a key nor probes find the places taken by connections that never showed one.
            stranger = next(iter(self._strangers))
            self.closed(stranger)
            stranger.abort()
            over -= 1
        self._strangers[connection] = None
        self._metrics.set("connections", len(self.connections))
        connection.is_surplus = over > 0
        return over <= _PROBE_CONNECTIONS

    def closed(self, connection: Connection) -> None:
        """Unregister a connection."""
        self.connections.discard(connection)
        self._strangers.pop(connection, None)
        self._metrics.set("connections", len(self.connections))

    def admit(self, connection: Connection, request: Request) -> RequestError | None:
        """Return the error for a request of which only the head has arrived, or None if it is accepted."""
        target = request.target
        route = request.route = _ROUTES.get(target) or _ROUTES.get(_path(target), "other")
        if connection.is_surplus and route not in _PROBED:
            return too_many_connections()
        if route == "other":
            return RequestError(404, "not_found", "there is nothing at this path")
        if request.method not in ((b"POST",) if route == "score" else (b"GET", b"HEAD")):
            return RequestError(405, "method_not_allowed", f"this path takes {'POST' if route == 'score' else 'GET'}")
        if route not in _OPEN:
            if not self.keys.accept(request.headers.get(b"authorization")):
                return RequestError(401, "unauthorized", "a valid key is needed: Authorization: Bearer KEY")
            self._strangers.pop(connection, None)
        if route == "score":
            return self._admit_body(request.headers)
        # Nobody needs a body to ask for these, and what a client without a key sends must not take up memory.
        if request.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in request.headers:
            return RequestError(413, "unexpected_body", "this path takes no body")
        return None

    def _admit_body(self, headers: Mapping[bytes, bytes]) -> RequestError | None:
        kind = headers.get(b"content-type", b"application/json")
        if kind != b"application/json" and not _is_json(kind):
            return RequestError(415, "unsupported_media_type", "the body must be application/json in UTF-8")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return RequestError(415, "unsupported_media_type", "the body must not be compressed")
        if int(headers.get(b"content-length", b"0")) > self.max_body:
            return too_large(self.max_body)
        return None

    def serve(self, connection: Connection, request: Request) -> bool:
        """Answer an admitted request. Return False if the answer comes later."""
        request.started = _clock()
        if request.route != "score":
            self._serve_document(connection, request)
            return True
        if self._inline and self._latency.is_short(len(request.body)):
            if not self._due:
                asyncio.get_running_loop().call_soon(self._serve_due)
            self._due.append((connection, request))
            self.held += len(request.body)
            return False
        return self._serve_in_thread(connection, request)

    def refuse(self, connection: Connection, request: Request, error: RequestError) -> None:
        """Answer a request with an error."""
        if not request.started:
            request.started = _clock()
        fields = self._fields(request)
        if error.status == 401:
            fields += b'WWW-Authenticate: Bearer realm="scoring"\r\n'
        elif error.status == 405:
            fields += b"Allow: POST\r\n" if request.route == "score" else b"Allow: GET, HEAD\r\n"
        if error.retry_after:
            fields += b"Retry-After: %d\r\n" % error.retry_after
        place = error.place
        message = f"{place}: {error.message}" if place else error.message
        content = {"code": error.code, "message": message, "place": place}
        body = _encode({"error": {**content, "request_id": request.request_id.decode()}})
        connection.answer(request, error.status, fields, body)
        self._metrics.failed(error.code)
        self._record(request, error.status, 0, b',"error":%b' % _encode({k: plain(v) for k, v in content.items()}))
        if error.status >= 500 and error.__cause__ is not None:
            self._explain(request, error.__cause__)

    # Inside

    def _serve_document(self, connection: Connection, request: Request) -> None:
        route, fields = request.route, self._fields(request)
        if route == "metrics":
            body = self._shared.exposition(*self._identity)
            fields = fields.replace(_JSON, _TEXT)
        elif route == "ready":
            if self.draining:
                self.refuse(connection, request, RequestError(503, "draining", "the worker is stopping", retry_after=1))
                return
            body = b'{"status":"ready"}'
        else:
            body = self._documents[route]
        connection.answer(request, 200, fields, body)
        self._record(request, 200, 0, b"")

    def _serve_due(self) -> None:
        """Score the short requests that have arrived, then answer them.

        Parse, score and answer in batches: interleaving the three per request doubles the model's time, because of
        misses in the processor's caches.
        """
        loop = asyncio.get_running_loop()
        served: list[tuple[Connection, Request, Outcome]] = []
        before = started = _clock()
        try:
            while self._due and before - started < INLINE_SECONDS:
                connection, request = self._due.popleft()
                self.held -= len(request.body)
                if not connection.is_alive:
                    served.append((connection, request, abandoned()))
                    continue
                if not self._latency.is_short(len(request.body)):  # the estimate has changed since it arrived
                    if self._serve_in_thread(connection, request):
                        connection.done()
                    continue
                outcome = self._outcome(request.body)
                after = _clock()
                self._latency.add_loop_sample(len(request.body), after - before)
                before = after
                served.append((connection, request, outcome))
        finally:
            if self._due:
                loop.call_soon(self._serve_due)
            for connection, request, outcome in served:
                try:
                    self._respond(connection, request, outcome)
                    connection.done()
                except Exception as error:  # it costs its own connection, not the others of this batch
                    connection.abort()
                    loop.call_exception_handler({"message": "a response could not be written", "exception": error})

    def _serve_in_thread(self, connection: Connection, request: Request) -> bool:
        later = False

        def finish(outcome: Outcome) -> None:
            self._metrics.add("in_flight", -1)
            self._respond(connection, request, outcome)
            if later:
                connection.done()

        self._metrics.add("in_flight")
        job = Job(request.body, finish, lambda: connection.is_alive)
        self._executor.submit(job)
        later = not job.answered
        return job.answered

    def _outcome(self, body: bytes) -> Outcome:
        try:
            return self._score(body)
        except RequestError as error:
            return error
        except Exception as error:  # no request may end a worker
            failure = RequestError(500, "internal", f"unexpected {type(error).__name__}")
            failure.__cause__ = error
            return failure

    def _respond(self, connection: Connection, request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, RequestError):
            self.refuse(connection, request, outcome)
            rows = 0
        else:
            body, rows = outcome
            connection.answer(request, 200, self._fields(request) + self._version_field, body)
            self._record(request, 200, rows, b"")
        self._metrics.scored(_clock() - request.started, rows)

    def _fields(self, request: Request) -> bytes:
        """Return the header lines that every response has. They also determine the request's id."""
        headers = request.headers
        client_id = headers.get(b"x-request-id")
        if client_id is not None and _REQUEST_ID.fullmatch(client_id):
            request.request_id = client_id
        else:
            request.request_id = b"%b-%d" % (self._id_prefix, next(self._ids))
        fields = b"%bX-Request-Id: %b\r\n" % (self._json_fields, request.request_id)
        if b"traceparent" in headers:
            match = _TRACEPARENT.fullmatch(headers[b"traceparent"])
            if match is None:
                del headers[b"traceparent"]  # W3C: ignore an invalid header
            else:
                span = secrets.token_hex(8).encode()
                headers[b"traceparent"] = b"00-%b-%b-%b" % (match[1], span, match[2])
                fields += b"traceparent: %b\r\n" % headers[b"traceparent"]
        return fields

    def _record(self, request: Request, status: int, rows: int, more: bytes) -> None:
        """Count a request and log it."""
        self._metrics.answered(request.route, status)
        if not self._settings.log_requests:
            return
        trace = request.headers.get(b"traceparent")
        if trace:
            more = b',"traceparent":"%b"%b' % (trace, more)
        path = request.target
        if path not in _ROUTES:
            path = _encode(plain(path[:100].decode("latin-1")))[1:-1]
        self._log.line(
            b'","level":"%b","event":"request","request_id":"%b","method":"%b","path":"%b","status":%d,"ms":%.3f,'
            b'"predictions":%d%b}\n'
            % (
                b"info" if status < 500 else b"error",
                request.request_id,
                request.method,
                path,
                status,
                (_clock() - request.started) * 1000,
                rows,
                more,
            )
        )

    def _explain(self, request: Request, cause: BaseException) -> None:
        """Log why the model failed. The client is not told."""
        self._log.event(
            "error",
            "model_failed",
            request_id=request.request_id.decode(),
            error=type(cause).__name__,
            text=str(cause)[:400],
        )


def _version_field(version: str) -> bytes:
    """Return the header line that says which version answered: during a canary, two do."""
    return f"X-Model-Version: {version}\r\n".encode() if version.isascii() and version.isprintable() else b""


def _path(target: bytes) -> bytes:
    """Return the path of a target with a query or in absolute form."""
    if not target.startswith(b"/"):
        _, _, rest = target.partition(b"://")
        target = b"/" + rest.partition(b"/")[2] if rest else target
    return target.partition(b"?")[0]


def _is_json(kind: bytes) -> bool:
    name, _, parameters = kind.lower().partition(b";")
    charset = parameters.replace(b" ", b"").replace(b'"', b"")
    return name.strip() == b"application/json" and (b"charset=" not in charset or b"charset=utf-8" in charset)


def _about(scorer: Scorer) -> dict[str, Any]:
    package = scorer.package
    return {
        "name": package.name,
        "version": package.version,
        "runtime": package.runtime,
        "package_sha256": package.sha256,
        "model_sha256": package.model_sha256,
        "inputs": [_column(column) for column in package.signature.inputs],
        "outputs": [_column(column) for column in package.signature.outputs],
    }


def _column(column: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": column.name, "type": column.type, "required": column.required}
    if not column.required:
        shown["default"] = None if column.default != column.default else column.default
    return shown
