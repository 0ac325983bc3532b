"""A request, a response, and the routing table. Every emulated service is written with these."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """A request as the client sent it. ``path`` is as on the wire, without the query; ``query`` holds the first
    value of each name, ``headers`` has names in lower case. ``target`` is path and query as they were sent.
    """

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    port: int = 443
    target: str = ""

    @classmethod
    def parse(
        cls, method: str, host: str, target: str, headers: Mapping[str, str], body: bytes, port: int = 443
    ) -> Request:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        sent = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        return cls(method, host.lower(), parts.path, query, headers, body, port, sent)

    def json(self) -> Any:
        return json.loads(self.body) if self.body else {}


@dataclass(frozen=True)
class Response:
    """The response to send. A body that is neither bytes nor None is sent as JSON."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> tuple[bytes, str]:
        if self.body is None:
            return b"", "application/json"
        if isinstance(self.body, bytes):
            return self.body, self.headers.get("Content-Type", "application/octet-stream")
        return json.dumps(self.body).encode(), "application/json"


class HttpError(Exception):
    """An error response. A handler, or what it calls, raises it, and ``Services`` sends ``response``."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        # Model management has an envelope of its own; the two do not disturb each other.
        details = [{"code": code, "message": message}]
        envelope = {"code": code, "statusCode": status, "message": message, "details": details}
        self.response = Response(status, {"error": {"code": code, "message": message}, **envelope})


Answer = Callable[..., Response]
"""``(world, request, **named groups of the path)``."""


class Service(Protocol):
    """Finds a request's handler. ``open`` services need no token; ``quick`` ones answer under their state's lock."""

    open: bool
    quick: bool

    def find(self, request: Request) -> Callable[[Any], Response | None] | None: ...


class Routes:
    """The calls that a service answers, in the order they were written down.

    ``shorthands`` are regular expressions by name: ``{WS}`` in a path stands for that of ``WS``.
    """

    quick = True

    def __init__(self, host: str, *, open: bool = False, **shorthands: str) -> None:
        self.open = open
        self._host = re.compile(host)
        self._shorthands = shorthands
        self._table: list[tuple[str, re.Pattern[str], Answer]] = []

    def on(self, method: str, path: str) -> Callable[[Answer], Answer]:
        """Register an answer. ``{x}`` in ``path`` is a shorthand, or else any one segment."""
        pattern = path
        for name, meaning in self._shorthands.items():
            pattern = pattern.replace(f"{{{name}}}", meaning)
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
        compiled = re.compile(pattern, re.IGNORECASE)

        def register(answer: Answer) -> Answer:
            self._table.append((method, compiled, answer))
            return answer

        return register

    def find(self, request: Request) -> Callable[[Any], Response | None] | None:
        """Return the handler of ``request`` with its arguments bound, or None when this service has none."""
        if not self._host.fullmatch(request.host):
            return None
        for method, pattern, answer in self._table:
            match = pattern.fullmatch(request.path) if method == request.method else None
            if match:
                groups = {name: value for name, value in match.groupdict().items() if value is not None}
                names = {name: unquote(value) for name, value in groups.items()}
                return lambda world: answer(world, request, **names)
        return None
