"""Resource Manager for Azure ML: the workspace, its keys, service discovery, compute clusters, quota."""

from __future__ import annotations

from emulators.azureml.storage import ACCOUNT_KEY
from emulators.azureml.world import DATA_PLANE, WORKSPACE, Workspace, World
from emulators.wire.account import GROUP, REGION, SUBSCRIPTION, TENANT, Json, error, now
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r"management\.azure\.com", WS=WORKSPACE)
data_plane = Routes(r".*\.api\.azureml\.ms", WS=WORKSPACE)
open_data_plane = Routes(r".*\.api\.azureml\.ms", open=True)

_SERVICES = (
    "api",
    "catalog",
    "experimentation",
    "history",
    "hyperdrive",
    "modelmanagement",
    "pipelines",
    "studio",
)

_NODE_COUNTS = (
    "preparingNodeCount",
    "runningNodeCount",
    "idleNodeCount",
    "unusableNodeCount",
    "leavingNodeCount",
    "preemptedNodeCount",
)
_LOCATION = "/subscriptions/{subscription}/providers/Microsoft.MachineLearningServices/locations/{location}"


@routes.on("GET", "/subscriptions")
def subscriptions(world: World, request: Request) -> Response:
    return Response(200, {"value": [_subscription()]})


@routes.on("GET", "/subscriptions/{subscription}")
def subscription(world: World, request: Request, subscription: str) -> Response:
    return Response(200, _subscription())


def _subscription() -> Json:
    return {
        "id": f"/subscriptions/{SUBSCRIPTION}",
        "subscriptionId": SUBSCRIPTION,
        "displayName": "emulated",
        "state": "Enabled",
        "tenantId": TENANT,
    }


@routes.on("GET", "{WS}")
def workspace(world: World, request: Request, subscription: str, group: str, workspace: str) -> Response:
    if subscription != SUBSCRIPTION:
        raise HttpError(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")
    if group != GROUP:
        raise HttpError(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
    return Response(200, _resource(world.workspace(workspace)))


def _resource(ws: Workspace) -> Json:
    provider = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"
    return {
        "id": ws.scope,
        "name": ws.name,
        "type": "Microsoft.MachineLearningServices/workspaces",
        "location": REGION,
        "tags": {},
        "sku": {"name": "Basic", "tier": "Basic"},
        "identity": {"type": "SystemAssigned", "principalId": ws.id, "tenantId": TENANT},
        "properties": {
            "friendlyName": ws.name,
            "description": "",
            "workspaceId": ws.id,
            "provisioningState": "Succeeded",
            "creationTime": now(),
            "storageAccount": f"{provider}/Microsoft.Storage/storageAccounts/{ws.account}",
            "keyVault": f"{provider}/Microsoft.Keyvault/vaults/emulated",
            "applicationInsights": f"{provider}/microsoft.insights/components/emulated",
            "containerRegistry": f"{provider}/Microsoft.ContainerRegistry/registries/emulated",
            "discoveryUrl": f"https://{DATA_PLANE}/discovery",
            "mlFlowTrackingUri": f"azureml://{DATA_PLANE}/mlflow/v1.0{ws.scope}",
            "hbiWorkspace": False,
            "v1LegacyMode": False,
        },
    }


@routes.on("POST", "{WS}/listKeys")
def list_keys(world: World, request: Request, subscription: str, group: str, workspace: str) -> Response:
    ws = world.workspace(workspace)
    return Response(200, {"userStorageKey": ACCOUNT_KEY, "userStorageResourceId": ws.account})


@routes.on("GET", "{WS}/computes")
@data_plane.on("GET", "/rp/workspaces{WS}/computes")
def list_computes(world: World, request: Request, subscription: str, group: str, workspace: str) -> Response:
    return Response(200, {"value": list(world.workspace(workspace).computes.values())})


@routes.on("GET", "{WS}/computes/{name}")
@data_plane.on("GET", "/rp/workspaces{WS}/computes/{name}")
def get_compute(world: World, request: Request, subscription: str, group: str, workspace: str, name: str) -> Response:
    compute = world.workspace(workspace).computes.get(name)
    if compute is None:
        raise HttpError(404, "ComputeNotFound", f"Compute resource with name '{name}' was not found.")
    if world.compute_looks:
        world.compute_looks -= 1
        compute = {**compute, "properties": {**compute["properties"], "provisioningState": "Creating"}}
    return Response(200, compute)


@routes.on("PUT", "{WS}/computes/{name}")
def put_compute(world: World, request: Request, subscription: str, group: str, workspace: str, name: str) -> Response:
    ws = world.workspace(workspace)
    wanted = request.json()["properties"]
    scale = wanted["properties"]["scaleSettings"]
    if scale["maxNodeCount"] > world.compute_quota:
        message = (
            f"The specified subscription has a total quota of {world.compute_quota} nodes in {REGION}, "
            f"{scale['maxNodeCount']} were requested. Request more quota or a smaller cluster."
        )
        raise HttpError(400, "ClusterMinNodesExceedCoreQuota", message)
    failed = world.compute_provisioning_error
    compute = _compute(ws, name, wanted, failed)
    ws.computes[name] = compute
    operation = f"https://management.azure.com{ws.scope}/operations/{name}?api-version=2019-11-01"
    return Response(201, compute, {"Azure-AsyncOperation": operation})


def _compute(ws: Workspace, name: str, wanted: Json, failed: str) -> Json:
    state = "Failed" if failed else "Succeeded"
    errors = [error("ClusterAllocationFailed", failed)] if failed else None
    nodes = {"targetNodeCount": 0, "currentNodeCount": 0, "allocationState": "Steady", "errors": errors}
    times = {"allocationStateTransitionTime": now(), "creationTime": now()}
    counts = dict.fromkeys(_NODE_COUNTS, 0)
    return {
        "id": f"{ws.scope}/computes/{name}",
        "name": name,
        "type": "Microsoft.MachineLearningServices/workspaces/computes",
        "tags": {},
        "location": REGION,
        "properties": {
            "computeType": "AmlCompute",
            "computeLocation": REGION,
            "provisioningState": state,
            "provisioningErrors": errors,
            "createdOn": now(),
            "modifiedOn": now(),
            "isAttachedCompute": False,
            "resourceId": None,
            "description": "",
            "properties": {"subnet": None, **wanted["properties"], **nodes, **times, "nodeStateCounts": counts},
        },
    }


@routes.on("GET", "{WS}/operations/{name}")
def operation(world: World, request: Request, subscription: str, group: str, workspace: str, name: str) -> Response:
    compute = world.workspace(workspace).computes[name]["properties"]
    if compute["provisioningState"] == "Failed":
        return Response(200, {"status": "Failed", **compute["provisioningErrors"][0]})
    return Response(200, {"status": "Succeeded"})


@routes.on("GET", _LOCATION + "/vmSizes")
def sizes(world: World, request: Request, subscription: str, location: str) -> Response:
    names = ("STANDARD_DS2_V2", "STANDARD_DS3_V2", "STANDARD_NC6")
    size = {"vCPUs": 2, "gpus": 0, "memoryGB": 7.0, "maxResourceVolumeMB": 14336}
    sizes = [{"name": name, **size} for name in names]
    return Response(200, {"amlCompute": sizes})


@routes.on("GET", _LOCATION + "/usages")
def usages(world: World, request: Request, subscription: str, location: str) -> Response:
    name = {"value": "standardDSv2Family", "localizedValue": "Standard DSv2 Family Cluster Dedicated vCPUs"}
    usage = {"id": name["value"], "unit": "Count", "currentValue": 0, "limit": 2 * world.compute_quota, "name": name}
    low = {"value": "TotalLowPriorityCores", "localizedValue": "Total Cluster LowPriority Regional vCPUs"}
    return Response(200, {"value": [usage, usage | {"id": low["value"], "name": low}]})


@open_data_plane.on("GET", "/discovery(/workspaces/{workspace})?")
def discovery(world: World, request: Request, workspace: str = "") -> Response:
    return Response(200, dict.fromkeys(_SERVICES, f"https://{DATA_PLANE}"))
