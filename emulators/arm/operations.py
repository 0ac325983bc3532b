"""Asynchronous operations, as Resource Manager has them.

A call whose work takes time is answered at once with 201 or 202 and an address, and the work goes on in a thread
(``World.begin``). The client polls the address, no more often than ``Retry-After`` says. There are two kinds, and each
provider has its own habit:

- ``Azure-AsyncOperation``: a status document, 200 each time, whose ``status`` becomes ``Succeeded`` or ``Failed``.
- ``Location``: 202 until the work is done, then the result, or the error as if the first call had returned it.

Source: https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations
"""

from __future__ import annotations

from emulators.arm.world import Operation, World
from emulators.wire.account import SUBSCRIPTION, Json, error
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r"management\.azure\.com")
_PATH = "/subscriptions/{subscription}/providers/Emulated/operations/{id}"


def accepted(world: World, operation: Operation, status: int, body: Json | None, header: str) -> Response:
    """Return the response to a call whose work goes on. ``header`` is the one of the two that this provider sends."""
    path = _PATH.format(subscription=SUBSCRIPTION, id=operation.id)
    kind = "results" if header == "Location" else "status"
    url = f"https://management.azure.com{path}/{kind}?api-version=2023-05-01"
    return Response(status, body, {header: url, "Retry-After": world.retry_after})


@routes.on("GET", _PATH + "/status")
def status(world: World, request: Request, subscription: str, id: str) -> Response:
    operation = world.operations[id]
    failed = error(operation.code, operation.message) if operation.status == "Failed" else {}
    return Response(200, {"id": id, "status": operation.status, **failed}, {"Retry-After": world.retry_after})


@routes.on("GET", _PATH + "/results")
def results(world: World, request: Request, subscription: str, id: str) -> Response:
    operation = world.operations[id]
    if operation.status == "Failed":
        raise HttpError(409, operation.code, operation.message)
    if operation.status == "Succeeded":
        return Response(200, {})
    again = f"https://{request.host}{request.target}"
    return Response(202, None, {"Location": again, "Retry-After": world.retry_after})
