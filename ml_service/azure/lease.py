"""One deployment at a time, across machines: a lease in a tag of the resource group. See ADR 0072.

The tag's value is the holder and a counter. Tags have no compare-and-swap, so two waiters may both write: the last one
wins, and each reads the tag back to learn whether it was the last. That leaves a gap between the write and the read of
the other. So the holder confirms the lease once more right before it moves traffic, and one that has lost it stops
there, with the version before still serving. ``common/lease.py`` has the rest.

Source: https://learn.microsoft.com/rest/api/resources/tags/update-at-scope
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ml_service.azure.errors import RETRIES, translated
from ml_service.common import lease as leases
from ml_service.config import Settings
from ml_service.ports import Progress

MANAGEMENT = "https://management.azure.com"
_API = "2021-04-01"
_DURATION = 15.0


@contextmanager
def held(settings: Settings, what: str, progress: Progress, timeout: float) -> Iterator[Lease]:
    """Hold the lease of the deployment ``what``. A lease whose holder was killed is free after fifteen seconds.

    Raises:
        UnavailableError: another deployment holds it for longer than ``timeout`` seconds.
    """
    with _tags(settings) as tags:
        lease = Lease(tags, f"mlops-lease-{what}")
        with leases.held(lease, progress, duration=_DURATION, timeout=timeout):
            yield lease


class Lease:
    """The tag, and the value that we last wrote there."""

    def __init__(self, tags: _Tags, name: str) -> None:
        self.where = f"tag {name} of the resource group"
        self._tags = tags
        self._name = name
        self._me = leases.identity()
        self._beats = 0

    def read(self) -> str:
        """Return the holder and its counter; empty when the lease is free."""
        return self._tags.read().get(self._name, "")

    def take(self) -> bool:
        """Write the tag, and return whether it is ours."""
        self._write()
        return self.is_mine()

    def renew(self) -> None:
        """Raise the counter in the tag, unless another deployment has taken the lease."""
        if self.is_mine():
            self._write()

    def release(self) -> None:
        """Delete the tag, if it is still ours."""
        if (text := self.read()) and text.startswith(f"{self._me} "):
            self._tags.change("Delete", {self._name: text})

    def confirm(self) -> None:
        """Make sure that the lease is still ours; call this right before traffic moves.

        Raises:
            UnavailableError: another deployment has taken the lease.
        """
        if not self.is_mine():
            raise leases.busy(self, self.read() or "nobody")

    def is_mine(self) -> bool:
        """Return whether the tag names us as its holder now."""
        return self.read().startswith(f"{self._me} ")

    def _write(self) -> None:
        self._beats += 1
        self._tags.change("Merge", {self._name: f"{self._me} {self._beats}"})


class _Tags:
    """The tags of the resource group, changed one by one."""

    def __init__(self, settings: Settings, client: Any) -> None:
        azure = settings.azure
        self._group = azure.resource_group
        scope = f"/subscriptions/{azure.subscription_id}/resourceGroups/{azure.resource_group}"
        self._url = f"{MANAGEMENT}{scope}/providers/Microsoft.Resources/tags/default"
        self._client = client

    def read(self) -> dict[str, str]:
        return self._call("GET", None)

    def change(self, operation: str, tags: dict[str, str]) -> None:
        self._call("PATCH", {"operation": operation, "properties": {"tags": tags}})

    def _call(self, method: str, body: Any) -> dict[str, str]:
        from azure.core.rest import HttpRequest

        with translated(f"resource group {self._group}"):
            response = self._client.send_request(
                HttpRequest(method, self._url, params={"api-version": _API}, json=body)
            )
            response.raise_for_status()
            return dict(response.json()["properties"].get("tags") or {})


@contextmanager
def _tags(settings: Settings) -> Iterator[_Tags]:
    from ml_service.azure.identity import credential

    with translated("Azure"):
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import RetryPolicy
        from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

        signing_in = ARMChallengeAuthenticationPolicy(credential(settings), f"{MANAGEMENT}/.default")
        client = PipelineClient(MANAGEMENT, policies=[RetryPolicy(**RETRIES), signing_in])
    with client:
        yield _Tags(settings, client)
