"""Planted faults: the next calls that match are answered wrongly, and later ones as usual."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from emulators.wire.http import HttpError, Request, Response


@dataclass
class Fault:
    """The next ``times`` calls whose ``METHOD host/path`` matches ``where`` (a regular expression) get ``status``.

    Status 0 drops the connection without an answer; ``after`` lets that many matching calls through first.
    ``done`` also performs the call: the work happens and its response is lost.
    """

    where: str
    status: int
    times: int = 1
    after: int = 0
    done: bool = False
    code: str = "Emulated"
    message: str = "a planted fault"
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response | None:
        """Return the wrong response, or None to drop the connection."""
        if not self.status:
            return None
        refused = HttpError(self.status, self.code, self.message).response
        return Response(self.status, refused.body, self.headers)


class Faults:
    """The faults that are planted and not used up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planted: list[Fault] = []

    def plant(self, fault: Fault) -> None:
        """Add a fault."""
        with self._lock:
            self._planted.append(fault)

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._planted.clear()

    def left(self) -> int:
        """Return how many wrong responses are still to come."""
        with self._lock:
            return sum(fault.times for fault in self._planted)

    def take(self, request: Request) -> Fault | None:
        """Return the fault that ``request`` meets, counted as used once, or None."""
        line = f"{request.method} {request.host}{request.path}"
        with self._lock:
            for fault in self._planted:
                if fault.times > 0 and re.search(fault.where, line):
                    if fault.after > 0:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None
