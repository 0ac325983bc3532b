"""Datastores and datasets. There is one datastore, the workspace's blob container."""

from __future__ import annotations

import json

from emulators.azureml.storage import ACCOUNT_KEY
from emulators.azureml.world import WORKSPACE, Workspace, World
from emulators.wire.account import GROUP, SUBSCRIPTION, Json, new_id, now
from emulators.wire.http import HttpError, Request, Response, Routes

DATASTORE = "workspaceblobstore"
CONTAINER = "azureml-blobstore"

routes = Routes(r".*\.api\.azureml\.ms", WS=WORKSPACE)


@routes.on("GET", "/datastore/v1.0{WS}/default")
def default(world: World, request: Request, workspace: str, **_: str) -> Response:
    return Response(200, _datastore(world.workspace(workspace)))


@routes.on("GET", "/datastore/v1.0{WS}/datastores")
def all_datastores(world: World, request: Request, workspace: str, **_: str) -> Response:
    return Response(200, {"value": [_datastore(world.workspace(workspace))]})


@routes.on("GET", "/datastore/v1.0{WS}/datastores/{name}")
def datastore(world: World, request: Request, workspace: str, name: str, **_: str) -> Response:
    if name not in (DATASTORE, "workspaceartifactstore"):
        raise HttpError(404, "UserError", f"Could not find datastore with name '{name}'.")
    return Response(200, _datastore(world.workspace(workspace)))


def _datastore(ws: Workspace) -> Json:
    return {
        "name": DATASTORE,
        "dataStoreType": "AzureBlob",
        "hasBeenValidated": True,
        "tags": {},
        "azureStorageSection": {
            "accountName": ws.account,
            "containerName": CONTAINER,
            "endpoint": "core.windows.net",
            "protocol": "https",
            "credentialType": "AccountKey",
            "credential": ACCOUNT_KEY,
            "accountKey": ACCOUNT_KEY,
            "blobCacheTimeout": 0,
            "isSas": False,
            "areWorkspaceManagedIdentitiesAllowed": False,
            "subscriptionId": SUBSCRIPTION,
            "resourceGroup": GROUP,
            "serviceDataAccessAuthIdentity": "None",
        },
    }


@routes.on("POST", "/dataset/v1.0{WS}/datasets")
def register(world: World, request: Request, workspace: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    sent = request.json()
    name = sent["name"]
    versions = ws.datasets.setdefault(name, {"id": new_id(), "versions": []})["versions"]
    if versions and request.query.get("updateDefinitionIfExists", "").lower() != "true":
        raise HttpError(409, "UserError", f"There is already a dataset registered under name '{name}'.")
    definition = sent["latest"]
    saved = new_id()
    ws.saved_datasets[saved] = definition
    version = {
        "datasetId": ws.datasets[name]["id"],
        "name": name,
        "description": sent.get("description"),
        "tags": sent.get("tags") or {},
        "isVisible": True,
        "datasetType": sent.get("datasetType"),
        "createdTime": now(),
        "modifiedTime": now(),
        "datasetState": {"state": "active"},
        "latest": definition
        | {
            "datasetId": ws.datasets[name]["id"],
            "versionId": str(len(versions) + 1),
            "savedDatasetId": saved,
            "createdTime": now(),
        },
    }
    versions.append(version)
    return Response(200, version)


@routes.on("GET", "/dataset/v1.0{WS}/datasets/query/name={name}")
def by_name(world: World, request: Request, workspace: str, name: str, **_: str) -> Response:
    versions = world.workspace(workspace).datasets.get(name, {"versions": []})["versions"]
    wanted = request.query.get("versionId", "")
    for version in reversed(versions):
        if wanted in ("", version["latest"]["versionId"]):
            return Response(200, version)
    raise HttpError(404, "UserError", f"Cannot find dataset registered with name '{name}', version '{wanted}'.")


@routes.on("GET", "/dataset/v1.0{WS}/saveddatasets/{saved}")
def by_saved_id(world: World, request: Request, workspace: str, saved: str, **_: str) -> Response:
    definition = world.workspace(workspace).saved_datasets.get(saved)
    if definition is None:
        raise HttpError(404, "UserError", f"Cannot find dataset with id '{saved}'.")
    return Response(200, {"id": saved, "datasetType": "file", "dataflowJson": definition["dataflow"]})


@routes.on("GET", "/data/v1.0{WS}/dataversion/{name}/versions/None")
def data_asset(world: World, request: Request, name: str, **_: str) -> Response:
    """Answer 404: the SDK looks for a data asset of SDK v2 when there is no dataset of the name."""
    raise HttpError(404, "UserError", f"Data asset {name} was not found.")


@routes.on("GET", r"/data/v1.0{WS}/dataversion/unregistered-{saved}/versions/1")
def dataflow(world: World, request: Request, workspace: str, saved: str, **_: str) -> Response:
    definition = world.workspace(workspace).saved_datasets[saved]
    return Response(200, {"legacyDatasetType": "file", "legacyDataflow": _reader_script(definition)})


def _reader_script(definition: Json) -> str:
    """Return the YAML that the SDK's native reader runs. The SDK sends it inside the dataflow's metadata."""
    return str(json.loads(definition["dataflow"])["meta"]["RsDataflow"])
