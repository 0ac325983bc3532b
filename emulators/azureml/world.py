"""The state of the emulated Azure ML. One lock guards it; blobs and the logs of steps are files below ``folder``."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from pathlib import Path

from emulators.azureml.processes import NewInterpreter, Starter
from emulators.wire.account import GROUP, REGION, SUBSCRIPTION, Account, Json, new_id
from emulators.wire.http import HttpError

DATA_PLANE = f"{REGION}.api.azureml.ms"

WORKSPACE = (
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/workspaces/(?P<workspace>[^/]+)"
)
"""The resource path of a workspace, ``{WS}`` in the paths of the services."""


@dataclass
class Workspace:
    """One workspace and its content, under the names that its clients use."""

    name: str
    id: str = field(default_factory=new_id)
    computes: dict[str, Json] = field(default_factory=dict)
    environments: dict[str, list[Json]] = field(default_factory=dict)
    datasets: dict[str, Json] = field(default_factory=dict)
    saved_datasets: dict[str, Json] = field(default_factory=dict)
    snapshots: dict[str, Json] = field(default_factory=dict)
    data_types: dict[str, Json] = field(default_factory=dict)
    modules: dict[str, Json] = field(default_factory=dict)
    pipelines: dict[str, Json] = field(default_factory=dict)
    graphs: dict[str, Json] = field(default_factory=dict)
    experiments: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    metrics: dict[str, list[Json]] = field(default_factory=dict)
    assets: dict[str, Json] = field(default_factory=dict)
    models: dict[str, Json] = field(default_factory=dict)
    model_versions: dict[str, int] = field(default_factory=dict)
    finished_steps: dict[str, Json] = field(default_factory=dict)

    @property
    def account(self) -> str:
        """The name of its storage account."""
        return f"emulated{self.id.replace('-', '')[:12]}"

    @property
    def scope(self) -> str:
        """Its resource path."""
        return (
            f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.name}"
        )


class World(Account):
    """The emulated workspaces. Handlers hold ``lock`` while they answer; steps run without it.

    Faults that last: ``compute_quota``, ``compute_provisioning_error``, ``failing_steps`` (the message by step name),
    and ``compute_looks``, how many reads of a cluster still show it as being created.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.workspaces: dict[str, Workspace] = {}
        self.compute_quota = 100
        self.compute_provisioning_error = ""
        self.compute_looks = 0
        self.failing_steps: dict[str, str] = {}
        self.environ: dict[str, str] = {}
        self.starter: Starter = NewInterpreter()
        self.threads: list[threading.Thread] = []
        self.cancels: dict[str, threading.Event] = {}
        self.numbers = itertools.count(1)

    def add_workspace(self, name: str) -> Workspace:
        """Return the workspace of that name, after creating it when there is none."""
        with self.lock:
            return self.workspaces.setdefault(name.lower(), Workspace(name))

    def workspace(self, name: str) -> Workspace:
        """Return a workspace.

        Raises:
            HttpError: 404, there is none of that name.
        """
        ws = self.workspaces.get(name.lower())
        if ws is None:
            resource = f"Microsoft.MachineLearningServices/workspaces/{name}"
            message = f"The Resource '{resource}' under resource group '{GROUP}' was not found."
            raise HttpError(404, "ResourceNotFound", message)
        return ws

    def stop_steps(self) -> None:
        """End every step that still runs."""
        for canceled in self.cancels.values():
            canceled.set()
        for thread in self.threads:
            thread.join(timeout=30)
        self.starter.close()

    def blob(self, account: str, container: str, name: str) -> Path:
        """Return the file that holds a blob.

        Raises:
            HttpError: 400, the name leads out of the container.
        """
        base = (self.folder / "blobs" / account / container).resolve()
        path = (base / name).resolve()
        if not path.is_relative_to(base):
            raise HttpError(400, "InvalidUri", "The requested URI does not represent any resource on the server.")
        return path
