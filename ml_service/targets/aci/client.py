"""The container groups of one deployment in Azure: which of them serves, and every change of them.

Their tags are the only record: a group's tags hold its version and, once it has served, its revision and the name of
the group before it. The group with the highest revision serves. So one write of tags moves everything at once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_service.azure.errors import RETRIES, AbsentError, translated
from ml_service.azure.polling import wait_for
from ml_service.azure.version import Version
from ml_service.config import Settings
from ml_service.ports import Progress
from ml_service.targets.aci.container_group import MAIN, OWNER, PREVIOUS, REVISION


@dataclass(frozen=True)
class Snapshot:
    """The groups by name, the one that serves, and the one that served before."""

    groups: Mapping[str, Any]
    current: Any | None
    previous: Any | None

    @property
    def orphans(self) -> list[str]:
        """The names of groups that nothing leads to: a deployment that was killed left them."""
        used = {group.name for group in (self.current, self.previous) if group}
        return sorted(name for name in self.groups if name not in used)

    @property
    def labels(self) -> set[str]:
        """The DNS labels in use."""
        return {str(group.ip_address.dns_name_label) for group in self.groups.values()}


def version_of(group: Any | None) -> Version | None:
    """Return the version that a group's tags name."""
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

    def read(self) -> Snapshot:
        """Return the groups that are there."""
        with translated(f"resource group {self._resource_group}"):
            groups = list(self._client.container_groups.list_by_resource_group(self._resource_group))
        ours = {str(group.name): group for group in groups if (group.tags or {}).get(OWNER) == self._name}
        served = [group for group in ours.values() if REVISION in group.tags]
        current = max(served, key=lambda group: (int(group.tags[REVISION]), group.name), default=None)
        previous = ours.get(current.tags.get(PREVIOUS, "")) if current else None
        return Snapshot(ours, current, previous)

    def get(self, name: str) -> Any:
        """Return one group with its instance view, which says what runs in it."""
        with translated(f"container group {name}"):
            return self._client.container_groups.get(self._resource_group, name)

    def create(self, name: str, group: Any, progress: Progress) -> None:
        """Create a group and wait until Azure has started it."""
        with translated(f"container group {name}"):
            poller = self._client.container_groups.begin_create_or_update(self._resource_group, name, group)
            wait_for(poller, f"Azure is starting container group {name}", progress)

    def start(self, name: str, progress: Progress) -> None:
        """Start a stopped group."""
        with translated(f"container group {name}"):
            poller = self._client.container_groups.begin_start(self._resource_group, name)
            wait_for(poller, f"Azure is starting container group {name}", progress)

    def stop(self, name: str) -> None:
        """Stop a group: it is kept, and costs nothing."""
        with translated(f"container group {name}"):
            self._client.container_groups.stop(self._resource_group, name)

    def delete(self, name: str) -> None:
        """Remove a group, if it is there."""
        try:
            with translated(f"container group {name}"):
                self._client.container_groups.begin_delete(self._resource_group, name).result(300)
        except AbsentError:
            pass

    def serve(self, group: Any, version: Version, revision: int, previous: str) -> None:
        """Write the tags by which ``group`` is what serves, and the group ``previous`` what served before."""
        from azure.mgmt.containerinstance.models import Resource

        tags = {**group.tags, **version.serving_now().tags(), REVISION: str(revision), PREVIOUS: previous}
        with translated(f"container group {group.name}"):
            self._client.container_groups.update(self._resource_group, group.name, Resource(tags=tags))

    def log(self, name: str, lines: int) -> Sequence[str]:
        """Return the last log lines of a group's scoring container, oldest first."""
        if lines <= 0:
            return []
        with translated(f"container group {name}"):
            logs = self._client.containers.list_logs(self._resource_group, name, MAIN, tail=lines)
        return str(logs.content or "").splitlines()[-lines:]
