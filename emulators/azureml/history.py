"""Run history and metrics: experiments, runs, their tags, children, details, events."""

from __future__ import annotations

import re
from collections.abc import Callable

from emulators.azureml import steps, storage
from emulators.azureml.world import WORKSPACE, Workspace, World
from emulators.wire import identity
from emulators.wire.account import Json, now
from emulators.wire.http import HttpError, Request, Response, Routes

routes = Routes(r".*\.api\.azureml\.ms", WS=WORKSPACE)
_BASE = "/history/v1.0{WS}"
_RUN = _BASE + "/(experiments/(?P<experiment>[^/]+)|experimentids/(?P<id>[^/]+))/runs/{run}"


def _public(run: Json) -> Json:
    return {key: value for key, value in run.items() if not key.startswith("_") and value is not None}


@routes.on("GET", _BASE + "/experiments/{name}")
def experiment(world: World, request: Request, workspace: str, name: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    if name not in ws.experiments:
        raise HttpError(404, "UserError", f"Experiment {name} was not found.")
    return Response(200, ws.experiments[name])


@routes.on("POST", _BASE + "/experiments/{name}")
def create_experiment(world: World, request: Request, workspace: str, name: str, **_: str) -> Response:
    return Response(200, steps.ensure_experiment(world.workspace(workspace), name))


@routes.on("GET", _BASE + "/experimentids/{identifier}")
def experiment_by_id(world: World, request: Request, workspace: str, identifier: str, **_: str) -> Response:
    for experiment in world.workspace(workspace).experiments.values():
        if experiment["experimentId"] == identifier:
            return Response(200, experiment)
    raise HttpError(404, "UserError", f"Experiment {identifier} was not found.")


@routes.on("GET", _RUN)
@routes.on("GET", _BASE + "/runs/{run}")
def get_run(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    return Response(200, _public(steps.find_run(world.workspace(workspace), run)))


@routes.on("PATCH", _RUN)
def patch_run(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    record = steps.find_run(world.workspace(workspace), run)
    for name in ("tags", "properties"):
        record[name] = {**record[name], **(request.json().get(name) or {})}
    return Response(200, _public(record))


@routes.on("GET", _RUN + "/details")
def details(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    record = steps.find_run(ws, run)
    log = f"ExperimentRun/{record['dataContainerId']}/{steps.LOG_NAME}"
    has_log = world.blob(ws.account, steps.LOG_CONTAINER, log).exists()
    links = {steps.LOG_NAME: storage.url(ws.account, steps.LOG_CONTAINER, log)} if has_log else {}
    shown = ("runId", "status", "startTimeUtc", "endTimeUtc", "error", "properties", "target")
    return Response(200, {key: record[key] for key in shown if record.get(key)} | {"logFiles": links})


@routes.on("GET", _RUN + "/children")
def children(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    runs = world.workspace(workspace).runs.values()
    return Response(200, {"value": [_public(child) for child in runs if child["parentRunId"] == run]})


@routes.on("POST", _BASE + "/experiments/{name}/runs:query")
def query(world: World, request: Request, workspace: str, name: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    asked = request.json()
    wanted = _filter(asked.get("filter") or "")
    runs = [run for run in ws.runs.values() if run["_experiment"] == name and wanted(run)]
    runs.sort(key=lambda run: run["runNumber"], reverse="desc" in (asked.get("orderby") or ""))
    return Response(200, {"value": [_public(run) for run in runs]})


def _filter(text: str) -> Callable[[Json], bool]:
    """Return the test for an OData filter, of the few forms that the SDK sends: ``(a eq b or c eq d) and (e eq f)``."""
    clauses = [part.strip(" ()") for part in re.split(r"\s+and\s+", text) if part.strip(" ()")]
    tests = [[_comparison(part.strip(" ()")) for part in re.split(r"\s+or\s+", clause)] for clause in clauses]
    return lambda run: all(any(test(run) for test in alternatives) for alternatives in tests)


def _comparison(text: str) -> Callable[[Json], bool]:
    match = re.fullmatch(r'(?:(tags|properties)/)?([\w.]+)\s+(eq|ne)\s+(?:"(.*)"|(.*))', text, re.IGNORECASE)
    if not match:
        raise HttpError(501, "NotEmulated", f"the emulator does not know the filter {text!r}")
    group, key, operator, quoted, bare = match.groups()
    value = quoted if quoted is not None else None if bare == "null" else bare

    def test(run: Json) -> bool:
        actual = run[group.lower()].get(key) if group else run.get(key[0].lower() + key[1:])
        return (actual == value) == (operator.lower() == "eq")

    return test


@routes.on("POST", _RUN + "/events")
def event(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    sent = request.json()
    if "cancel" in str(sent.get("name", "")).lower():
        steps.cancel(world, world.workspace(workspace), run)
    return Response(200, {})


@routes.on("POST", _RUN + "/token")
@routes.on("GET", _RUN + "/token")
def token(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    steps.find_run(world.workspace(workspace), run)
    return Response(200, {"token": identity.make_token(world, run), "expiryTimeUtc": now()})


@routes.on("GET", _RUN + "/metricsingest/wait")
@routes.on("POST", _RUN + "/metricsingest/wait")
def ingested(world: World, request: Request, **_: str) -> Response:
    return Response(200, {"state": "Succeeded"})


@routes.on("POST", "/metric/v2.0{WS}/runs/{run}/batch")
def add_metrics(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    _metrics(ws, run).extend(request.json()["values"])
    return Response(200, {"runUuid": run, "errors": []})


@routes.on("POST", "/metric/v2.0{WS}/runs/{run}/list")
def list_metrics(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    columns = {metric["name"]: metric["columns"] for metric in _metrics(world.workspace(workspace), run)}
    return Response(200, {"value": [{"metricKey": {"name": n}, "columns": kinds} for n, kinds in columns.items()]})


@routes.on("POST", "/metric/v2.0{WS}/runs/{run}/full")
def full_metric(world: World, request: Request, workspace: str, run: str, **_: str) -> Response:
    name = request.json()["metricName"]
    logged = [metric for metric in _metrics(world.workspace(workspace), run) if metric["name"] == name]
    values = [value for metric in logged for value in metric["value"]]
    return Response(200, {**logged[-1], "value": values})


def _metrics(ws: Workspace, run: str) -> list[Json]:
    """Return a run's metrics. They are stored by data container, which is named after the run."""
    return ws.metrics.setdefault(run.removeprefix("dcid."), [])
