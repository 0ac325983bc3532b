"""Long operations: 202 or 201 with an address to ask, and the asking."""

from __future__ import annotations

from emulators.arm.world import Operation, World
from emulators.wire.account import SUBSCRIPTION, Json, error
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r"management\.azure\.com")
_PATH = "/subscriptions/{subscription}/providers/Emulated/operations/{id}"


def accepted(world: World, operation: Operation, status: int, body: Json | None, header: str) -> Response:
    """The answer to a call whose work goes on: ``header`` is where its client looks, as each provider has it."""
    path = _PATH.format(subscription=SUBSCRIPTION, id=operation.id)
    kind = "results" if header == "Location" else "status"
    url = f"https://management.azure.com{path}/{kind}?api-version=2023-05-01"
    return Response(status, body, {header: url, "Retry-After": world.retry_after})


@routes.on("GET", _PATH + "/status")
def status(world: World, request: Request, subscription: str, id: str) -> Response:
    found = world.operations[id]
    failed = error(found.code, found.message) if found.status == "Failed" else {}
    return Response(200, {"id": id, "status": found.status, **failed}, {"Retry-After": world.retry_after})


@routes.on("GET", _PATH + "/results")
def results(world: World, request: Request, subscription: str, id: str) -> Response:
    found = world.operations[id]
    if found.status == "Failed":
        raise HttpError(409, found.code, found.message)
    if found.status == "Succeeded":
        return Response(200, {})
    again = f"https://{request.host}{request.target}"
    return Response(202, None, {"Location": again, "Retry-After": world.retry_after})
