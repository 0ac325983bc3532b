"""Compute: run a submitted graph, one process a step, each in a fresh copy of its snapshot.

``submit`` answers at once; a thread per run walks the graph. A step whose module is deterministic is looked up by a
hash of everything that can change its output (sources, arguments, inputs, run configuration) and reused when it has
completed before, as the service does. A cancellation sets an event that the thread reads while a step runs: the step's
process group is ended, and the run with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emulators.azureml import snapshots, storage
from emulators.azureml.data import CONTAINER
from emulators.azureml.processes import NewInterpreter, Process
from emulators.azureml.world import DATA_PLANE, Workspace, World
from emulators.wire import identity
from emulators.wire.account import GROUP, SUBSCRIPTION, Json, new_id, now
from emulators.wire.http import HttpError

LOG_CONTAINER = "azureml"
LOG_NAME = "user_logs/std_log.txt"
_ENDED = ("Completed", "Failed", "Canceled")


def find_run(ws: Workspace, run: str) -> Json:
    """Return the record of a run.

    Raises:
        HttpError: 404, there is no such run.
    """
    if run not in ws.runs:
        raise HttpError(404, "UserError", f"Run {run} was not found in workspace {ws.name}.")
    return ws.runs[run]


def submit(world: World, ws: Workspace, published: Json, sent: Json) -> Json:
    """Create the run of a published pipeline and start it."""
    experiment = sent["ExperimentName"]
    ensure_experiment(ws, experiment)
    graph = ws.graphs[published["GraphId"]]
    parameters = {p["Name"]: p.get("DefaultValue") or "" for p in graph["Interface"]["Parameters"]}
    parameters |= sent.get("ParameterAssignments") or {}
    run = _new_run(ws, world, experiment, "azureml.PipelineRun", None)
    run["tags"] = dict(sent.get("tags") or {})
    run["properties"] = {
        "azureml.runsource": "azureml.PipelineRun",
        "runSource": sent.get("RunSource") or "Unavailable",
        "azureml.parameters": json.dumps(parameters),
        "azureml.pipelineid": published["Id"],
    }
    world.cancels[run["runId"]] = threading.Event()
    execution = _Execution(world, ws, run, graph, parameters)
    thread = threading.Thread(target=execution.run_all, name=run["runId"], daemon=True)
    world.threads.append(thread)
    thread.start()
    return run


def cancel(world: World, ws: Workspace, run: str) -> None:
    """Ask a pipeline's run to end. The cancellation of a step ends the whole run."""
    record = find_run(ws, run)
    root = record["rootRunId"]
    if find_run(ws, root)["status"] not in _ENDED:
        find_run(ws, root)["status"] = "CancelRequested"
        world.cancels[root].set()


def ensure_experiment(ws: Workspace, name: str) -> Json:
    """Return the experiment of that name, after creating it when there is none."""
    return ws.experiments.setdefault(
        name, {"experimentId": new_id(), "name": name, "createdUtc": now(), "tags": {}, "description": None}
    )


def _new_run(ws: Workspace, world: World, experiment: str, kind: str, parent: Json | None) -> Json:
    identifier = new_id()
    run = {
        "runId": identifier,
        "runUuid": identifier,
        "rootRunId": parent["runId"] if parent else identifier,
        "parentRunId": parent["runId"] if parent else None,
        "runNumber": next(world.numbers),
        "experimentId": ws.experiments[experiment]["experimentId"],
        "_experiment": experiment,
        "dataContainerId": f"dcid.{identifier}",
        "status": "NotStarted",
        "runType": kind,
        "createdUtc": now(),
        "tags": {},
        "properties": {},
        "error": None,
    }
    ws.runs[identifier] = run
    return run


@dataclass
class _Execution:
    """One run of a graph. Steps run one after the other, in the order of their edges."""

    world: World
    ws: Workspace
    run: Json
    graph: Json
    parameters: Mapping[str, str]
    outputs: dict[tuple[str, str], Path] = field(default_factory=dict)

    def run_all(self) -> None:
        """Run every step. The run ends like the first step that did not complete."""
        self._set(self.run, "Running")
        try:
            end, error = self._run_steps()
        except Exception:  # a bug here must end the run, not leave it running for ever
            traceback.print_exc()
            end, error = "Failed", f"the emulator failed: {traceback.format_exc(limit=-1)}"
        if self._canceled.is_set():
            end, error = "Canceled", None
        self._set(self.run, end, error)

    def _run_steps(self) -> tuple[str, str | None]:
        for node in self._in_order():
            end, error = self._run_step(node)
            if end != "Completed":
                return end, error
        return "Completed", None

    @property
    def _canceled(self) -> threading.Event:
        return self.world.cancels[self.run["runId"]]

    def _set(self, run: Json, status: str, error: str | None = None) -> None:
        with self.world.lock:
            run["status"] = status
            if status == "Running":
                run["startTimeUtc"] = now()
            if status in _ENDED:
                run["endTimeUtc"] = now()
            if error:
                run["error"] = {"error": {"code": "UserError", "message": error}}

    def _in_order(self) -> Iterator[Json]:
        waiting = {node["Id"]: node for node in self.graph["ModuleNodes"]}
        while waiting:
            needed = {
                edge["DestinationInputPort"]["NodeId"]
                for edge in self.graph["Edges"]
                if edge["SourceOutputPort"]["NodeId"] in waiting
            }
            ready = [identifier for identifier in waiting if identifier not in needed]
            yield waiting.pop(ready[0])

    def _run_step(self, node: Json) -> tuple[str, str | None]:
        module = self.ws.modules[node["ModuleId"]]
        with self.world.lock:
            step = _new_run(self.ws, self.world, self.run["_experiment"], "azureml.StepRun", self.run)
            step["properties"] = {
                "azureml.runsource": "azureml.StepRun",
                "azureml.moduleName": module["Name"],
            }
            step["tags"] = {"azureml.nodeid": node["Id"], "azureml.pipeline": self.run["runId"]}
            step["name"] = step["displayName"] = module["Name"]
        places = {port["Name"]: self._output(step, port["Name"]) for port in module["StructuredInterface"]["Outputs"]}
        key = self._reuse_key(node, module)
        if module["IsDeterministic"] and key in self.ws.finished_steps:
            return self._reuse(node, step, self.ws.finished_steps[key])
        self.outputs |= {(node["Id"], name): place for name, place in places.items()}
        end, error = self._process(node, module, step)
        if end == "Completed":
            self.ws.finished_steps[key] = {"outputs": places, "runId": step["runId"]}
        self._set(step, end, error)
        return end, f"Step {module['Name']} failed: {error}" if error else None

    def _output(self, step: Json, name: str) -> Path:
        return self.world.blob(self.ws.account, CONTAINER, f"azureml/{step['runId']}/{name}")

    def _reuse(self, node: Json, step: Json, earlier: Json) -> tuple[str, None]:
        self.outputs |= {(node["Id"], name): place for name, place in earlier["outputs"].items()}
        step["properties"] |= {"azureml.isreused": "true", "azureml.reusedrunid": earlier["runId"]}
        self._set(step, "Completed")
        return "Completed", None

    def _reuse_key(self, node: Json, module: Json) -> str:
        sources = self.ws.snapshots[module["StorageId"]]
        content = {name: storage.sha256(self.world, uri) for name, uri in sources.items()}
        inputs = {port: str(place) for port, place in self._inputs(node).items()}
        values = self._arguments(node, module, dict.fromkeys(inputs, Path()))
        arguments = [argument for argument, kind in values if kind != "Output"]
        parts = [module["Name"], content, arguments, inputs, self._script(node), node["Runconfig"]]
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _inputs(self, node: Json) -> dict[str, Path]:
        """Return the path of each input port: that of the output at the other end of its edge."""
        return {
            edge["DestinationInputPort"]["PortName"]: self.outputs[
                edge["SourceOutputPort"]["NodeId"], edge["SourceOutputPort"]["PortName"]
            ]
            for edge in self.graph["Edges"]
            if edge["DestinationInputPort"]["NodeId"] == node["Id"]
        }

    def _values(self, node: Json) -> dict[str, str]:
        """Return the value of each parameter of a node. ValueType 1 names a parameter of the pipeline."""
        return {
            p["Name"]: self.parameters[p["Value"]] if p["ValueType"] == "1" else p.get("Value") or ""
            for p in node["ModuleParameters"]
        }

    def _script(self, node: Json) -> str:
        return self._values(node)["Script"]

    def _arguments(self, node: Json, module: Json, places: Mapping[str, Path]) -> list[tuple[str, str]]:
        values = self._values(node)
        resolved = []
        for argument in module["StructuredInterface"]["Arguments"]:
            kind, value = argument["ValueType"], argument["Value"]
            known = {"Input": places.get(value), "Output": places.get(value), "Parameter": values.get(value)}
            resolved.append((str(known.get(kind, value)), kind))
        return resolved

    def _process(self, node: Json, module: Json, step: Json) -> tuple[str, str | None]:
        folder = self.world.folder / "work" / step["runId"]
        folder.mkdir(parents=True)
        with self.world.lock:
            snapshots.restore(self.world, self.ws.name, module["StorageId"], folder)
        outputs = {name: place for (owner, name), place in self.outputs.items() if owner == node["Id"]}
        for place in outputs.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        arguments = [text for text, _ in self._arguments(node, module, self._inputs(node) | outputs)]
        if self._canceled.is_set():
            return "Canceled", None
        self._set(step, "Running")
        planted = self.world.failing_steps.get(module["Name"])
        command = [self._script(node), *arguments]
        if planted:
            command = ["-c", "import sys; sys.exit(sys.argv[1])", planted]
        log = self.world.blob(self.ws.account, LOG_CONTAINER, f"ExperimentRun/{step['dataContainerId']}/{LOG_NAME}")
        log.parent.mkdir(parents=True, exist_ok=True)
        starter = NewInterpreter() if planted else self.world.starter
        return self._await(starter.start(command, folder, self._environment(node, step), log), log)

    def _await(self, process: Process, log: Path) -> tuple[str, str | None]:
        while process.code is None:
            if self._canceled.wait(0.05):
                process.end()
                return "Canceled", None
        if process.code == 0:
            return "Completed", None
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        return "Failed", f"process exited with code {process.code}: {lines[-1]}"

    def _environment(self, node: Json, step: Json) -> dict[str, str]:
        """Return a step's environment: this process's own, and the variables that Azure ML sets."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AZUREML_", "SP_APP_"))}
        experiment = self.ws.experiments[self.run["_experiment"]]
        expiry = str(int(time.time() + self.world.token_life))
        values = json.loads(node["Runconfig"])["environment"]["environmentVariables"]
        return {
            **inherited,
            **self.world.environ,
            **values,
            **json.loads(node["Runconfig"]).get("environmentVariables", {}),
            "PYTHONUNBUFFERED": "1",
            "AZUREML_RUN_ID": step["runId"],
            "AZUREML_ROOT_RUN_ID": step["rootRunId"],
            "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION,
            "AZUREML_ARM_RESOURCEGROUP": GROUP,
            "AZUREML_ARM_WORKSPACE_NAME": self.ws.name,
            "AZUREML_ARM_PROJECT_NAME": self.run["_experiment"],
            "AZUREML_EXPERIMENT_ID": experiment["experimentId"],
            "AZUREML_EXPERIMENT_SCOPE": f"{self.ws.scope}/experiments/{self.run['_experiment']}",
            "AZUREML_WORKSPACE_SCOPE": self.ws.scope,
            "AZUREML_WORKSPACE_ID": self.ws.id,
            "AZUREML_SERVICE_ENDPOINT": f"https://{DATA_PLANE}",
            "AZUREML_DISCOVERY_SERVICE_ENDPOINT": f"https://{DATA_PLANE}/discovery",
            "AZUREML_RUN_TOKEN": identity.make_token(self.world, step["runId"]),
            "AZUREML_RUN_TOKEN_EXPIRY": expiry,
        }
