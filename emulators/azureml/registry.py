"""The model registry: artifacts, assets, and models by name and number."""

from __future__ import annotations

from emulators.azureml import storage
from emulators.azureml.world import WORKSPACE, Workspace, World
from emulators.wire.account import Json, new_id, now
from emulators.wire.http import HttpError, Request, Response, Routes

CONTAINER = "azureml"

routes = Routes(r".*\.api\.azureml\.ms", WS=WORKSPACE)
_BASE = "/modelmanagement/v1.0{WS}"


@routes.on("POST", "/artifact/v2.0{WS}/artifacts/batch/metadata/{origin}/{container}")
def create_artifacts(world: World, request: Request, workspace: str, origin: str, container: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    paths = [entry["path"] for entry in request.json()["paths"]]
    return Response(
        200,
        {
            "artifacts": {path: _artifact(origin, container, path) for path in paths},
            "artifactContentInformation": {path: _content(ws, origin, container, path) for path in paths},
            "errors": {},
        },
    )


def _artifact(origin: str, container: str, path: str) -> Json:
    return {"artifactId": f"{origin}/{container}/{path}", "origin": origin, "container": container, "path": path}


def _content(ws: Workspace, origin: str, container: str, path: str) -> Json:
    address = storage.url(ws.account, CONTAINER, f"{origin}/{container}/{path}")
    return {"contentUri": address, "origin": origin, "container": container, "path": path}


@routes.on("GET", "/artifact/v2.0{WS}/artifacts/prefix/contentinfo/{origin}/{container}/(?P<path>.+)")
def artifacts_below(
    world: World, request: Request, workspace: str, origin: str, container: str, path: str, **_: str
) -> Response:
    ws = world.workspace(workspace)
    base = world.blob(ws.account, CONTAINER, f"{origin}/{container}")
    files = sorted(f.relative_to(base).as_posix() for f in (base / path).rglob("*") if f.is_file())
    return Response(200, {"value": [_content(ws, origin, container, file) for file in files]})


@routes.on("POST", _BASE + "/assets")
def create_asset(world: World, request: Request, workspace: str, **_: str) -> Response:
    asset = request.json() | {"id": new_id(), "createdTime": now()}
    world.workspace(workspace).assets[asset["id"]] = asset
    return Response(200, asset)


@routes.on("GET", _BASE + "/assets/{identifier}")
def asset(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    return Response(200, world.workspace(workspace).assets[identifier])


@routes.on("POST", _BASE + "/models")
def register(world: World, request: Request, workspace: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    sent = request.json()
    number = ws.model_versions.get(sent["name"], 0) + 1
    ws.model_versions[sent["name"]] = number
    model = sent | {
        "id": f"{sent['name']}:{number}",
        "version": number,
        "kvTags": sent.get("kvTags") or {},
        "properties": sent.get("properties") or {},
        "createdTime": now(),
        "modifiedTime": now(),
    }
    ws.models[model["id"]] = model
    return Response(200, model)


@routes.on("GET", _BASE + "/models")
def models(world: World, request: Request, workspace: str, **_: str) -> Response:
    asked = request.query
    chosen = [
        model
        for model in world.workspace(workspace).models.values()
        if asked.get("name", model["name"]) == model["name"]
        and asked.get("runId", model.get("runId")) == model.get("runId")
        and _matches(asked.get("tags", ""), model["kvTags"])
        and _matches(asked.get("properties", ""), model["properties"])
    ]
    chosen.sort(key=lambda model: model["version"], reverse=True)
    return Response(200, {"value": chosen})


def _matches(query: str, values: Json) -> bool:
    """``key=value,key``: every one must be there."""
    wanted = [part.partition("=") for part in query.split(",") if part]
    return all(key in values and (not equals or values[key] == value) for key, equals, value in wanted)


def _model(ws: Workspace, identifier: str) -> Json:
    if identifier not in ws.models:
        raise HttpError(404, "ModelNotFound", f"Model with id {identifier} was not found.")
    return ws.models[identifier]


@routes.on("GET", _BASE + "/models/{identifier}")
def model(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    return Response(200, _model(world.workspace(workspace), identifier))


@routes.on("PATCH", _BASE + "/models/{identifier}")
def patch(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    entry = _model(world.workspace(workspace), identifier)
    for change in request.json():
        name = change["path"].strip("/")
        if change["op"] == "add" and isinstance(entry.get(name), dict):
            entry[name] = {**entry[name], **change["value"]}
        else:
            entry[name] = change["value"]
    entry["modifiedTime"] = now()
    return Response(200, entry)


@routes.on("DELETE", _BASE + "/models/{identifier}")
def delete(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    _model(ws, identifier)
    del ws.models[identifier]
    return Response(200)
