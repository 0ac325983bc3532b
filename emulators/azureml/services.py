"""The services of Azure ML, in the order in which they are tried."""

from __future__ import annotations

from emulators.azureml import data, environments, history, pipelines, registry, resources, snapshots, storage
from emulators.azureml.world import World
from emulators.wire.http import Request, Response, Routes

control = Routes("emulator", open=True)


@control.on("POST", "/failing-steps")
def failing_steps(world: World, request: Request) -> Response:
    world.failing_steps = {str(name): str(why) for name, why in request.json().items()}
    return Response(204)


SERVICES = (
    control,
    resources.routes,
    resources.open_data_plane,
    resources.data_plane,
    environments.routes,
    data.routes,
    snapshots.routes,
    pipelines.routes,
    history.routes,
    registry.routes,
    storage.routes,
)
