"""Auxiliary resources: tags of a resource group, container registries with their admin passwords, key vaults."""

from __future__ import annotations

from emulators.arm.world import RG, World
from emulators.wire.account import SUBSCRIPTION, TENANT, new_id
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r"management\.azure\.com", RG=RG)
vault = Routes(r"[a-z0-9-]+\.vault\.azure\.net", open=True)
_TAGS = "{RG}/providers/Microsoft.Resources/tags/default"
_REGISTRIES = "Microsoft.ContainerRegistry/registries"


@routes.on("GET", _TAGS)
def tags(world: World, request: Request, subscription: str, group: str) -> Response:
    return Response(200, {"properties": {"tags": world.tags.get(group, {})}})


@routes.on("PATCH", _TAGS)
def change_tags(world: World, request: Request, subscription: str, group: str) -> Response:
    body, current = request.json(), world.tags.setdefault(group, {})
    changes = dict(body["properties"]["tags"])
    if body["operation"] == "Merge":
        current |= changes
    elif body["operation"] == "Delete":
        world.tags[group] = {name: value for name, value in current.items() if changes.get(name) != value}
    return tags(world, request, subscription, group)


@routes.on("GET", f"/subscriptions/{{subscription}}/providers/{_REGISTRIES}")
def registries(world: World, request: Request, subscription: str) -> Response:
    scope = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/elsewhere/providers/{_REGISTRIES}"
    listed = [
        {
            "id": f"{scope}/{server.partition('.')[0]}",
            "name": server.partition(".")[0],
            "location": "westeurope",
            "sku": {"name": "Basic"},
            "properties": {"loginServer": server, "adminUserEnabled": registry["admin"]},
        }
        for server, registry in world.registries.items()
    ]
    return Response(200, {"value": listed})


@routes.on("POST", f"{{RG}}/providers/{_REGISTRIES}/{{name}}/listCredentials")
def credentials(world: World, request: Request, subscription: str, group: str, name: str) -> Response:
    registry = world.registries[f"{name}.azurecr.io"]
    if not registry["admin"]:
        message = "Cannot perform credential operations: the admin user is disabled."
        raise HttpError(400, "UnAuthorizedForCredentialOperations", message)
    return Response(200, {"username": name, "passwords": [{"name": "password", "value": registry["password"]}]})


@vault.on("GET", "/secrets/{name}/?")
def secret(world: World, request: Request, name: str) -> Response:
    refused = _challenge(request)
    if refused:
        return refused
    versions = world.secrets.get((request.host, name))
    if not versions:
        raise HttpError(404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault.")
    return _secret(request, name, *versions[-1])


@vault.on("PUT", "/secrets/{name}")
def set_secret(world: World, request: Request, name: str) -> Response:
    refused = _challenge(request)
    if refused:
        return refused
    versions = world.secrets.setdefault((request.host, name), [])
    versions.append((new_id().replace("-", ""), request.json()["value"]))
    return _secret(request, name, *versions[-1])


def _challenge(request: Request) -> Response | None:
    if request.headers.get("authorization"):
        return None
    authority = f'Bearer authorization="https://login.microsoftonline.com/{TENANT}", resource="https://vault.azure.net"'
    return Response(401, {}, {"WWW-Authenticate": authority})


def _secret(request: Request, name: str, version: str, value: str) -> Response:
    url = f"https://{request.host}/secrets/{name}/{version}"
    return Response(200, {"id": url, "value": value, "attributes": {"enabled": True, "created": 1, "updated": 1}})
