"""All services behind one door: faults first, then the token, then whoever knows the call; else 501."""

from __future__ import annotations

import re
import sys
import time
import traceback

from emulators.azureml import (
    data,
    environments,
    history,
    identity,
    pipelines,
    registry,
    resources,
    snapshots,
    storage,
)
from emulators.azureml.faults import Fault, Faults
from emulators.azureml.http import Refusal, Request, Response
from emulators.azureml.world import World, error

_SERVICES = (
    identity.routes,
    resources.routes,
    resources.data_plane,
    environments.routes,
    data.routes,
    snapshots.routes,
    pipelines.routes,
    history.routes,
    registry.routes,
    storage.routes,
)
_TELEMETRY = re.compile(r".*(applicationinsights|visualstudio|in\.ai\.monitor|events\.data\.microsoft).*")
_OPEN = re.compile(r"login\.microsoftonline\.com|.*\.blob\.core\.windows\.net")


class Services:
    """Answers requests. ``log`` keeps one line for each, ``unknown`` those that nobody knew."""

    def __init__(self, world: World, *, verbose: bool = False) -> None:
        self.world = world
        self.faults = Faults()
        self.log: list[str] = []
        self.unknown: list[str] = []
        self._verbose = verbose

    def answer(self, request: Request) -> Response | None:
        """The answer, or None to drop the connection."""
        fault = self.faults.take(request)
        if fault is not None:
            if fault.done:
                self._dispatch(request)
            response = fault.response()
        else:
            response = self._dispatch(request)
        self._note(request, response)
        return response

    def _dispatch(self, request: Request) -> Response:
        if request.host == "emulator":
            return self._control(request)
        if _TELEMETRY.fullmatch(request.host):
            return Response(200, {"itemsReceived": 1, "itemsAccepted": 1, "errors": []})
        try:
            if not _OPEN.fullmatch(request.host) and not request.path.startswith("/discovery"):
                identity.check_token(self.world, request)
            return self._answer_known(request)
        except Refusal as refusal:
            return refusal.response
        except Exception:  # a bug here must show as one, not as a hanging client
            traceback.print_exc()
            return Response(500, error("EmulatorBug", traceback.format_exc(limit=-3)))

    def _answer_known(self, request: Request) -> Response:
        for service in _SERVICES:
            bound = service.find(request)
            if bound:
                with self.world.lock:
                    return bound(self.world)
        line = f"{request.method} {request.host}{request.path}"
        self.unknown.append(line)
        return Response(501, error("NotEmulated", f"the emulator does not know {line}"))

    def _control(self, request: Request) -> Response:
        """Plain HTTP to the proxy's own port: see whether it is up, plant a fault."""
        if request.method == "POST" and request.path == "/faults":
            self.faults.plant(Fault(**request.json()))
            return Response(204)
        if request.method == "POST" and request.path == "/failing-steps":
            self.world.failing_steps = {str(k): str(v) for k, v in request.json().items()}
            return Response(204)
        if request.method == "GET" and request.path == "/log":
            return Response(200, {"log": self.log, "unknown": self.unknown})
        return Response(404, error("NotFound", "POST /faults, POST /failing-steps or GET /log"))

    def _note(self, request: Request, response: Response | None) -> None:
        status = response.status if response else "dropped"
        line = f"{time.strftime('%H:%M:%S')} {status} {request.method} {request.host}{request.path}"
        self.log.append(line)
        if self._verbose or status == 501:
            print(line, file=sys.stderr, flush=True)
