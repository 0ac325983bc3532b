"""Route requests for the public host name of a group or site to its container."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable

from emulators.arm.world import World
from emulators.wire.account import error
from emulators.wire.http import Request, Response

_HOSTS = re.compile(r".*\.(azurecontainer\.io|azurewebsites\.net)")
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "proxy-connection", "host"}


class HostRouter:
    """Answers for every public host name. Each request has its own connection, so that a swap cuts none."""

    open = True
    quick = False

    def find(self, request: Request) -> Callable[[World], Response | None] | None:
        """Return the answer from the container, or None when the host name is not a public one."""
        return (lambda world: _pass(world, request)) if _HOSTS.fullmatch(request.host) else None


def _pass(world: World, request: Request) -> Response | None:
    if not world.knows(request.host):
        return None
    is_site = request.host.endswith("azurewebsites.net")
    if is_site and request.port != 443:
        return Response(301, b"", {"Location": f"https://{request.host}{request.target}"})
    port = world.behind(request.host, request.port)
    answer = _ask(request, port) if port else None
    return answer or (Response(503, error("ServiceUnavailable", "Application Error")) if is_site else None)


def _ask(request: Request, port: int) -> Response | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {name: value for name, value in request.headers.items() if name not in _HOP} | {"Connection": "close"}
    try:
        connection.request(request.method, request.target, request.body or None, headers)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    headers_back = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
    return Response(answer.status, body, headers_back)
