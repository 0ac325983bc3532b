"""The state of the emulated Resource Manager: container groups, web apps, auxiliary resources, operations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from emulators.arm.engine import Engine, Pod
from emulators.wire.account import Account, Json, new_id
from emulators.wire.http import HttpError

RG = r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"


@dataclass
class Operation:
    """Work that goes on after its call was answered."""

    id: str
    status: str = "InProgress"
    code: str = ""
    message: str = ""


@dataclass
class Group:
    """A container group: the body it was created with, its containers, and its events."""

    body: Json
    pod: Pod | None = None
    state: str = "Creating"
    events: list[Json] = field(default_factory=list)


@dataclass
class Site:
    """A web app or one of its slots."""

    name: str
    body: Json
    config: Json = field(default_factory=dict)
    app_settings: dict[str, str] = field(default_factory=dict)
    sticky: list[str] = field(default_factory=list)
    slots: dict[str, Site] = field(default_factory=dict)
    pod: Pod | None = None
    log: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)


class World(Account):
    """The state, and the faults that last: ``capacity`` false, ``group_quota``, ``taken_labels``.

    Faults of single calls are planted (``wire.faults``). Handlers hold ``lock`` while they answer. Work that takes
    time runs in a thread without the lock, and takes it only to record its result.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.engine = Engine(folder)
        self.retry_after = "1"
        self.groups: dict[str, Group] = {}
        self.sites: dict[str, Site] = {}
        self.plans: dict[str, str] = {"emulated": "Standard"}
        self.registries: dict[str, Json] = {}
        self.secrets: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.operations: dict[str, Operation] = {}
        self.capacity = True
        self.group_quota = 100
        self.taken_labels: set[str] = set()
        self._threads: list[threading.Thread] = []

    def begin(self, work: Callable[[], None]) -> Operation:
        """Start ``work`` in a thread, and return the operation to poll. An HttpError in it is the operation's error."""
        operation = Operation(new_id())
        self.operations[operation.id] = operation
        thread = threading.Thread(target=_carry_out, args=(operation, work), daemon=True)
        self._threads.append(thread)
        thread.start()
        return operation

    def tunnel(self, host: str, port: int) -> tuple[str, int] | None:
        """Return the local address behind port 443 of a container group, whose container ends TLS itself."""
        pod = self._pod_of_group(host)
        local = pod.port(port) if pod and port == 443 else None
        return ("127.0.0.1", local) if local else None

    def behind(self, host: str, port: int) -> int | None:
        """Return the port of this machine behind a public host name, or None when nothing runs there."""
        pod = self._pod_of_group(host)
        if pod is not None:
            return pod.port(port)
        site = self._site(host)
        return site.pod.port(None) if site is not None and site.pod is not None else None

    def knows(self, host: str) -> bool:
        """Return whether the host name belongs to a group or site."""
        return self._pod_of_group(host) is not None or self._site(host) is not None

    def _pod_of_group(self, host: str) -> Pod | None:
        with self.lock:
            pods = (g for g in self.groups.values() if g.body["properties"]["ipAddress"].get("fqdn") == host)
            return next((group.pod for group in pods), None)

    def _site(self, host: str) -> Site | None:
        name = host.partition(".")[0]
        with self.lock:
            every = [one for site in self.sites.values() for one in (site, *site.slots.values())]
            return next((site for site in every if site.name.lower() == name), None)

    def stop(self) -> None:
        """Wait for the operations that go on, and remove every container."""
        for thread in self._threads:
            thread.join(timeout=30)
        self.engine.remove_all()


def _carry_out(operation: Operation, work: Callable[[], None]) -> None:
    try:
        work()
        operation.status = "Succeeded"
    except HttpError as error:
        operation.code, operation.message = error.code, str(error)
        operation.status = "Failed"
