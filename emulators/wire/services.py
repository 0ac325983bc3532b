"""Dispatch requests: a planted fault, else the service that knows the call, after a check of its token, else 501."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from emulators.wire import identity
from emulators.wire.account import Account, error
from emulators.wire.faults import Fault, Faults
from emulators.wire.http import HttpError, Request, Response, Service

_TELEMETRY = re.compile(r".*(applicationinsights|visualstudio|in\.ai\.monitor|events\.data\.microsoft).*")

Tunnel = Callable[[str, int], tuple[str, int] | None]
"""The local address behind a host and port whose owner ends TLS itself, or None."""


class Services:
    """Answers requests. ``log`` has one line for each, ``unknown`` those without a handler; ``watch`` is called first.

    ``known`` pairs each service with the state that it answers from. ``account`` decides which tokens are valid.
    """

    def __init__(
        self, account: Account, known: Sequence[tuple[Service, Any]], tunnel: Tunnel, *, verbose: bool = False
    ) -> None:
        self.tunnel = tunnel
        self.faults = Faults()
        self.log: list[str] = []
        self.unknown: list[str] = []
        self.watch: Callable[[Request], None] = lambda request: None
        self._account = account
        self._known = known
        self._verbose = verbose

    def answer(self, request: Request) -> Response | None:
        """Return the response, or None to drop the connection."""
        self.watch(request)
        fault = self.faults.take(request)
        if fault is not None:
            if fault.done:
                self._dispatch(request)
            response = fault.response()
        else:
            response = self._dispatch(request)
        self._note(request, response)
        return response

    def _dispatch(self, request: Request) -> Response | None:
        if _TELEMETRY.fullmatch(request.host):
            return Response(200, {"itemsReceived": 1, "itemsAccepted": 1, "errors": []})
        try:
            return self._control(request) or self._answer_known(request)
        except HttpError as http_error:
            return http_error.response
        except Exception:  # a bug here must show as one, not as a hanging client
            traceback.print_exc()
            return Response(500, error("EmulatorBug", traceback.format_exc(limit=-3)))

    def _answer_known(self, request: Request) -> Response | None:
        for service, world in self._known:
            bound = service.find(request)
            if bound is None:
                continue
            if not service.open:
                identity.check_token(self._account, request)
            if not service.quick:
                return bound(world)
            with world.lock:
                return bound(world)
        line = f"{request.method} {request.host}{request.path}"
        self.unknown.append(line)
        return Response(501, error("NotEmulated", f"the emulator does not know {line}"))

    def _control(self, request: Request) -> Response | None:
        """Answer plain HTTP to the proxy's own port: read the log, plant a fault."""
        if request.host != "emulator":
            return None
        if request.method == "POST" and request.path == "/faults":
            self.faults.plant(Fault(**request.json()))
            return Response(204)
        if request.method == "GET" and request.path == "/log":
            return Response(200, {"log": self.log, "unknown": self.unknown})
        return None

    def _note(self, request: Request, response: Response | None) -> None:
        status = response.status if response else "dropped"
        line = f"{time.strftime('%H:%M:%S')} {status} {request.method} {request.host}{request.path}"
        self.log.append(line)
        if self._verbose or status == 501:
            print(line, file=sys.stderr, flush=True)
