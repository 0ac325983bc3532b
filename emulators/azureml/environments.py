"""Environments: definitions by name and version. Images are never built: steps run in the emulator's own Python."""

from __future__ import annotations

from emulators.azureml.world import WORKSPACE, World
from emulators.wire.account import Json
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r".*\.api\.azureml\.ms", WS=WORKSPACE)


def _find(world: World, workspace: str, name: str, version: str | None) -> Json:
    versions = world.workspace(workspace).environments.get(name, [])
    for definition in reversed(versions):
        if version in (None, "", definition["version"]):
            return definition
    raise HttpError(404, "EnvironmentNotFound", f"No environment exists for name: {name}, version: {version}")


@routes.on("GET", "/environment/v1.0{WS}/environments/{name}(/versions/{version})?")
def get(world: World, request: Request, workspace: str, name: str, version: str | None = None, **_: str) -> Response:
    return Response(200, _find(world, workspace, name, version))


@routes.on("PUT", "/environment/v1.0{WS}/environments/{name}(/versions/{version})?")
def put(world: World, request: Request, workspace: str, name: str, version: str | None = None, **_: str) -> Response:
    versions = world.workspace(workspace).environments.setdefault(name, [])
    definition = request.json()
    definition["version"] = version or definition.get("version") or str(len(versions) + 1)
    definition["name"] = name
    versions.append(definition)
    return Response(200, definition)
