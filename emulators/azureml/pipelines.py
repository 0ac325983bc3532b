"""Pipelines: modules, graphs, publication, submission. ``steps`` runs what is submitted here."""

from __future__ import annotations

from emulators.azureml import steps
from emulators.azureml.world import DATA_PLANE, WORKSPACE, Workspace, World
from emulators.wire.account import Json, new_id, now
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r".*\.api\.azureml\.ms", WS=WORKSPACE)
_BASE = "/pipelines/v1.0{WS}"
_FILE_TYPES = (
    "AnyFile",
    "AzureBlobReference",
    "AzureDataLakeReference",
    "AzureFilesReference",
    "AzureSqlDatabaseReference",
    "AzurePostgresDatabaseReference",
    "AzureDataLakeGen2Reference",
    "AzureMLDataset",
    "AzureMySqlDatabaseReference",
    "DBFSReference",
)


@routes.on("GET", _BASE + "/DataTypes")
def data_types(world: World, request: Request, **_: str) -> Response:
    kinds = [(name, False) for name in _FILE_TYPES] + [("AnyDirectory", True)]
    return Response(
        200, [{"Id": name, "Name": name, "IsDirectory": folder, "ParentDataTypeIds": []} for name, folder in kinds]
    )


@routes.on("GET", _BASE + "/Modules/Hash/{identifier}")
def module_by_hash(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    for module in world.workspace(workspace).modules.values():
        if module["IdentifierHash"] == identifier:
            return Response(200, _module(module))
    raise HttpError(404, "NotFound", "no module has this hash")


@routes.on("POST", _BASE + "/Modules")
def create_module(world: World, request: Request, workspace: str, **_: str) -> Response:
    module = request.json() | {"Id": new_id(), "UploadState": "Completed", "EntityStatus": "0", "CreatedDate": now()}
    world.workspace(workspace).modules[module["Id"]] = module
    return Response(200, module)


@routes.on("GET", _BASE + "/Modules/{identifier}")
def module_by_id(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    return Response(200, _module(world.workspace(workspace).modules[identifier]))


def _module(module: Json) -> Json:
    shape = module["StructuredInterface"]
    ports = {
        "Inputs": [{"Name": port["Name"], "DataTypesIds": port["DataTypeIdsList"]} for port in shape["Inputs"]],
        "Outputs": [{"Name": port["Name"], "DataTypeId": port["DataTypeId"]} for port in shape["Outputs"]],
    }
    interface = {"Parameters": shape["Parameters"], "MetadataParameters": shape["MetadataParameters"], "Ports": ports}
    return {"Data": module, "Interface": interface}


@routes.on("POST", _BASE + "/Pipelines/Create")
def publish(world: World, request: Request, workspace: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    sent = request.json()
    graph = sent.pop("Graph") | {"Id": new_id(), "Interface": sent.pop("GraphInterface")}
    ws.graphs[graph["Id"]] = graph
    identifier = new_id()
    pipeline = sent | {
        "Id": identifier,
        "GraphId": graph["Id"],
        "TotalRunSteps": len(graph["ModuleNodes"]),
        "EntityStatus": "0",
        "CreatedDate": now(),
        "LastModifiedDate": now(),
        "Url": f"https://{DATA_PLANE}/pipelines/v1.0{ws.scope}/PipelineRuns/PipelineSubmit/{identifier}",
    }
    ws.pipelines[identifier] = pipeline
    return Response(200, pipeline)


@routes.on("GET", _BASE + "/Pipelines")
def list_pipelines(world: World, request: Request, workspace: str, **_: str) -> Response:
    active = request.query.get("activeOnly", "true").lower() == "true"
    pipelines = [p for p in world.workspace(workspace).pipelines.values() if p["EntityStatus"] == "0" or not active]
    return Response(200, pipelines)


@routes.on("GET", _BASE + "/Pipelines/{identifier}")
def pipeline(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    return Response(200, _pipeline(world.workspace(workspace), identifier))


@routes.on("PUT", _BASE + "/Pipelines/{identifier}/status")
def set_status(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    entry = _pipeline(world.workspace(workspace), identifier)
    entry["EntityStatus"] = str(request.json())
    return Response(200, entry)


@routes.on("POST", _BASE + "/PipelineRuns/PipelineSubmit/{identifier}")
def submit(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    published = _pipeline(ws, identifier)
    if published["EntityStatus"] not in ("0", "Active"):
        raise HttpError(400, "BadRequest", f"Pipeline {identifier} is disabled.")
    run = steps.submit(world, ws, published, request.json())
    return Response(200, _entity(run))


@routes.on("GET", _BASE + "/PipelineRuns/{run}")
def pipeline_run(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    return Response(200, _entity(steps.find_run(world.workspace(workspace), run)))


@routes.on("DELETE", _BASE + "/PipelineRuns/{run}/Execution")
def cancel(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    steps.cancel(world, world.workspace(workspace), run)
    return Response(200)


@routes.on("POST", _BASE + "/PipelineRuns/{run}/Graph/Node/StatusCode")
def node_status(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    wanted = request.json()
    node = wanted[0] if isinstance(wanted, list) else request.query.get("nodeIdPath", "")
    for step in world.workspace(workspace).runs.values():
        if step["tags"].get("azureml.pipeline") == run and step["tags"].get("azureml.nodeid") == node:
            return Response(200, _code(step))
    return Response(200, "NotStarted")


def _code(run: Json) -> str:
    return {"Completed": "Finished", "CancelRequested": "Running"}.get(str(run["status"]), str(run["status"]))


def _entity(run: Json) -> Json:
    return {
        "Id": run["runId"],
        "PipelineId": run["properties"]["azureml.pipelineid"],
        "RunHistoryExperimentName": run["_experiment"],
        "Status": {"StatusCode": _code(run), "CreationTime": run["createdUtc"]},
        "tags": run["tags"],
        "IsSubmitted": True,
    }


def _pipeline(ws: Workspace, identifier: str) -> Json:
    if identifier not in ws.pipelines:
        raise HttpError(404, "NotFound", f"Pipeline {identifier} was not found in workspace {ws.name}.")
    return ws.pipelines[identifier]
