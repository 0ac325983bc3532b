"""The container groups of one deployment in Azure: which of them serves, and every change of them.

What is there says all: a group's tags hold its version and, once it has served, its turn. The highest turn serves.
One write of tags moves everything at once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_service.azure.errors import RETRIES, AbsentError, translated
from ml_service.common.version import Version
from ml_service.config import Settings
from ml_service.ports import Progress
from ml_service.targets.aci.container_group import MAIN, OWNER, PREVIOUS, TURN

_SAY_AGAIN = 10.0


@dataclass(frozen=True)
class View:
    """The groups by name, and which serves and served before."""

    groups: Mapping[str, Any]
    current: Any | None
    previous: Any | None

    @property
    def strays(self) -> list[str]:
        """Groups that nothing leads to: left by a deployment that was killed, or older than the one before."""
        used = {group.name for group in (self.current, self.previous) if group}
        return sorted(name for name in self.groups if name not in used)

    @property
    def labels(self) -> set[str]:
        """The addresses in use."""
        return {str(group.ip_address.dns_name_label) for group in self.groups.values()}


def version_of(group: Any | None) -> Version | None:
    """The version that a group says it holds."""
    return Version.from_tags(group.tags or {}) if group else None


class Groups:
    """The container groups with our deployment's name in their tags."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = settings.aci.name
        self._resource_group = settings.azure.resource_group

    @functools.cached_property
    def _client(self) -> Any:
        from ml_service.azure.identity import credential

        with translated("Container Instances"):
            from azure.mgmt.containerinstance import ContainerInstanceManagementClient

            azure = self._settings.azure
            return ContainerInstanceManagementClient(credential(self._settings), azure.subscription_id, **RETRIES)

    def look(self) -> View:
        """Read what is there."""
        with translated(f"resource group {self._resource_group}"):
            listed = list(self._client.container_groups.list_by_resource_group(self._resource_group))
        found = {str(group.name): group for group in listed if (group.tags or {}).get(OWNER) == self._name}
        served = [group for group in found.values() if TURN in group.tags]
        current = max(served, key=lambda group: (int(group.tags[TURN]), group.name), default=None)
        previous = found.get(current.tags.get(PREVIOUS, "")) if current else None
        return View(found, current, previous)

    def get(self, name: str) -> Any:
        """One group, with the view of what runs in it."""
        with translated(f"container group {name}"):
            return self._client.container_groups.get(self._resource_group, name)

    def create(self, name: str, group: Any, progress: Progress) -> None:
        """Make a group and wait until Azure has started it."""
        with translated(f"container group {name}"):
            poller = self._client.container_groups.begin_create_or_update(self._resource_group, name, group)
            _wait(poller, f"Azure is starting container group {name}", progress)

    def start(self, name: str, progress: Progress) -> None:
        """Start a stopped group."""
        with translated(f"container group {name}"):
            poller = self._client.container_groups.begin_start(self._resource_group, name)
            _wait(poller, f"Azure is starting container group {name}", progress)

    def stop(self, name: str) -> None:
        """Stop a group, which ends its costs and keeps it."""
        with translated(f"container group {name}"):
            self._client.container_groups.stop(self._resource_group, name)

    def delete(self, name: str) -> None:
        """Remove a group; one that is not there is fine."""
        try:
            with translated(f"container group {name}"):
                self._client.container_groups.begin_delete(self._resource_group, name).result(300)
        except AbsentError:
            pass

    def serve(self, group: Any, version: Version, turn: int, previous: str) -> None:
        """From this one write on, ``group`` is what serves and ``previous`` what served before."""
        from azure.mgmt.containerinstance.models import Resource

        tags = {**group.tags, **version.serving_now().tags(), TURN: str(turn), PREVIOUS: previous}
        with translated(f"container group {group.name}"):
            self._client.container_groups.update(self._resource_group, group.name, Resource(tags=tags))

    def log(self, name: str, lines: int) -> Sequence[str]:
        """The last that the scoring container of a group said, oldest first."""
        if lines <= 0:
            return []
        with translated(f"container group {name}"):
            found = self._client.containers.list_logs(self._resource_group, name, MAIN, tail=lines)
        return str(found.content or "").splitlines()[-lines:]


def _wait(poller: Any, what: str, progress: Progress) -> None:
    started = said = time.monotonic()
    while not poller.done():
        poller.wait(1)
        if time.monotonic() - said > _SAY_AGAIN:
            said = time.monotonic()
            progress(f"{what} ({said - started:.0f} s)")
    poller.result()
