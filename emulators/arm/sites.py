"""Microsoft.Web: web apps for containers and their deployment slots.

A change of settings or image restarts the container: the new one gets the traffic when its port answers, the old one
goes then; a new one that ends leaves the site without any. A swap starts the slot's container again under the
settings that stick to production, and exchanges what the two host names lead to.
Source: https://learn.microsoft.com/rest/api/appservice/web-apps
"""

from __future__ import annotations

import socket
import time

from emulators.arm.engine import Container, Pod
from emulators.arm.operations import accepted
from emulators.arm.world import RG, Site, World
from emulators.wire.account import REGION, Json, new_id
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r"management\.azure\.com", RG=RG)
_WEB = "{RG}/providers/Microsoft.Web"
_SITE = _WEB + r"/sites/(?P<name>[^/]+)(/slots/(?P<slot>[^/]+))?"
_WARM_UP = 30.0
_STOP_AFTER = 2.0


@routes.on("GET", _WEB + "/serverfarms/{name}")
def plan(world: World, request: Request, subscription: str, group: str, name: str) -> Response:
    if name not in world.plans:
        raise HttpError(404, "ResourceNotFound", f"The Resource 'Microsoft.Web/serverFarms/{name}' was not found.")
    sku = {"tier": world.plans[name]}
    return Response(200, {"id": request.path, "name": name, "location": REGION, "sku": sku})


@routes.on("PUT", _SITE)
def put(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    body = request.json()
    siblings = world.sites if not slot else _find(world, name).slots
    if slot and "slots" not in _tiers(world, name):
        message = "Cannot complete the operation because the site will exceed the number of slots allowed for the plan."
        raise HttpError(409, "Conflict", message)
    if name in world.taken_labels:
        raise HttpError(409, "Conflict", f"Website with given name {name} already exists.")
    site = siblings.setdefault(slot or name, Site(f"{name}-{slot}" if slot else name, {}))
    site.body = {key: body[key] for key in ("location", "tags", "identity") if key in body} | {"id": request.path}
    site.body["properties"] = {k: v for k, v in body["properties"].items() if k != "siteConfig"}
    _change(world, site, body["properties"].get("siteConfig", {}))
    return Response(200, _shown(site))


def _tiers(world: World, name: str) -> set[str]:
    farm = _find(world, name).body["properties"]["serverFarmId"].rpartition("/")[2]
    return {"slots"} if world.plans.get(farm) in ("Standard", "Premium") else set()


@routes.on("GET", _SITE)
def get(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    return Response(200, _shown(_find(world, name, slot)))


@routes.on("PATCH", _SITE)
def patch(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    site = _find(world, name, slot)
    _change(world, site, request.json()["properties"].get("siteConfig", {}))
    return Response(200, _shown(site))


@routes.on("DELETE", _SITE)
def delete(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    site = _find(world, name, slot)
    gone = [site, *site.slots.values()]
    del (world.sites if not slot else _find(world, name).slots)[slot or name]
    for one in gone:
        if one.pod:
            one.pod.remove()
    return Response(200)


@routes.on("GET", _SITE + "/config/web")
def config(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    return Response(200, {"id": request.path, "properties": _find(world, name, slot).config})


@routes.on("POST", _SITE + "/config/appsettings/list")
def app_settings(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    return Response(200, {"id": request.path, "properties": dict(_find(world, name, slot).app_settings)})


@routes.on("PUT", _SITE + "/config/slotConfigNames")
def sticky(world: World, request: Request, subscription: str, group: str, name: str) -> Response:
    _find(world, name).sticky = list(request.json()["properties"].get("appSettingNames") or [])
    return Response(200, request.json())


@routes.on("POST", _SITE + "/slotsswap")
def swap(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    production = _find(world, name)
    source = _find(world, name, request.json()["targetSlot"])
    answer = accepted(world, world.begin(lambda: _swap(world, production, source)), 202, None, "Location")
    # The client reads whole seconds here, and nowhere else.
    return Response(answer.status, answer.body, {**answer.headers, "Retry-After": "1"})


@routes.on("POST", _SITE + "/containerlogs")
def logs(world: World, request: Request, subscription: str, group: str, name: str, slot: str = "") -> Response:
    site = _find(world, name, slot)
    lines = site.log + (site.pod.log("site", 5000).splitlines() if site.pod else [])
    return Response(200, "".join(f"{line}\n" for line in lines).encode(), {"Content-Type": "text/plain"})


def _find(world: World, name: str, slot: str = "") -> Site:
    site = world.sites.get(name)
    site_or_slot = site.slots.get(slot) if site and slot else site
    if site_or_slot is None:
        raise HttpError(404, "ResourceNotFound", f"The Resource 'Microsoft.Web/sites/{name}/{slot}' was not found.")
    return site_or_slot


def _shown(site: Site) -> Json:
    properties = {**site.body["properties"], "state": "Running", "defaultHostName": f"{site.name}.azurewebsites.net"}
    identity = dict(site.body.get("identity") or {})
    if "userAssignedIdentities" in identity:
        identity["userAssignedIdentities"] = {one: {"clientId": new_id()} for one in identity["userAssignedIdentities"]}
    return {**site.body, "name": site.name, "identity": identity or None, "properties": properties}


def _change(world: World, site: Site, wanted: Json) -> None:
    config = {key: value for key, value in wanted.items() if key != "appSettings"}
    if "appSettings" in wanted:
        site.app_settings = {one["name"]: one["value"] for one in wanted["appSettings"]}
    site.config |= config
    if site.config.get("linuxFxVersion", "").startswith("DOCKER|"):
        world.begin(lambda: _restart(world, site))
    elif site.pod:
        gone, site.pod = site.pod, None
        _retire(world, site, gone)


def _restart(world: World, site: Site) -> None:
    with site.lock:
        old = site.pod
        try:
            site.pod = _started(world, site, site.app_settings)
        except HttpError as error:
            site.pod = None
            site.log.append(f"ERROR - {error.code}: {error}")
        if old:
            _retire(world, site, old)


def _started(world: World, site: Site, settings: dict[str, str]) -> Pod:
    image = site.config["linuxFxVersion"].removeprefix("DOCKER|")
    _check_access(world, site, image, settings)
    port = int(settings.get("WEBSITES_PORT", 80))
    pod = world.engine.run([Container("site", image, settings)], [port], restart=False)
    if not _answers(pod):
        site.log += pod.log("site", 100).splitlines()
        pod.remove()
        raise HttpError(409, "ContainerTimeout", f"Container for site {site.name} did not start; it has exited.")
    return pod


def _check_access(world: World, site: Site, image: str, settings: dict[str, str]) -> None:
    registry = world.registries.get(image.partition("/")[0])
    if registry is None or site.config.get("acrUseManagedIdentityCreds"):
        return
    if settings.get("DOCKER_REGISTRY_SERVER_PASSWORD") != registry["password"]:
        raise HttpError(409, "ImagePullUnauthorizedFailure", f"DockerApiException: pulling {image}: unauthorized")


def _answers(pod: Pod) -> bool:
    """Return whether the container responds before the platform's warm-up timeout."""
    deadline = time.monotonic() + _WARM_UP
    while time.monotonic() < deadline:
        if pod.states()["site"]["Status"] != "running":
            return False
        local = pod.port(None)
        if local and _responds(local):
            return True
        time.sleep(0.1)
    return False


def _responds(port: int) -> bool:
    """Return whether a byte comes back: the engine's own proxy accepts connections before the container listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            probe.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return bool(probe.recv(1))
    except OSError:
        return False


def _retire(world: World, site: Site, pod: Pod) -> None:
    """Stop the old container once it has had time to finish its requests, and remove it."""

    def work() -> None:
        time.sleep(_STOP_AFTER)
        pod.stop()
        pod.remove()

    world.begin(work)


def _swap(world: World, production: Site, source: Site) -> None:
    # A setting is either sticky, and stays with its slot, or moves with the app. The slot's container starts again with
    # the settings that it will have in production, and only when that one responds are the host names exchanged.
    with source.lock, production.lock:
        stays = {name: value for name, value in production.app_settings.items() if name in production.sticky}
        leaves = {name: value for name, value in source.app_settings.items() if name in production.sticky}
        coming = {name: value for name, value in source.app_settings.items() if name not in production.sticky} | stays
        going = {name: value for name, value in production.app_settings.items() if name not in stays} | leaves
        warmed = _started(world, source, coming)
        before, spare = production.pod, source.pod
        with world.lock:
            production.pod, production.app_settings, source.app_settings = warmed, coming, going
            production.config, source.config = source.config, production.config
            source.pod = None
        for pod in (before, spare):
            if pod:
                _retire(world, production, pod)
        if source.config.get("linuxFxVersion"):
            _restart(world, source)
