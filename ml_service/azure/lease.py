"""One deployment at a time, across machines: a lease in a tag of the resource group. See ADR 0072.

The tag's value is the holder and a counter, which the holder raises every five seconds. A tag that stays the same for
fifteen seconds belongs to a holder that was killed. Tags have no compare-and-swap, so two waiters may both write: the
last one wins, and each reads the tag back to learn whether it was the last. That leaves a gap between the write and the
read of the other. So the holder confirms the lease once more right before it moves traffic, and one that has lost it
stops there, with the version before still serving.

Source: https://learn.microsoft.com/rest/api/resources/tags/update-at-scope
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ml_service.azure.errors import RETRIES, translated
from ml_service.config import Settings
from ml_service.errors import MlopsError, UnavailableError
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
        lease.acquire(progress, timeout)
        stop = threading.Event()
        renewing = threading.Thread(target=lease.renew_until, args=(stop,), daemon=True)
        renewing.start()
        try:
            yield lease
        finally:
            stop.set()
            renewing.join()
            lease.release()


class Lease:
    """The tag, and the value that we last wrote there."""

    def __init__(self, tags: _Tags, name: str) -> None:
        self._tags = tags
        self._name = name
        self._me = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._beats = 0

    def acquire(self, progress: Progress, timeout: float) -> None:
        """Wait for the lease, then take it.

        Raises:
            UnavailableError: another deployment still holds it after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        last_stamp, since, is_reported = "", time.monotonic(), False
        while True:
            stamp = self._tags.read().get(self._name, "")
            # Judged by this machine's clock alone: clocks of two machines may differ.
            if stamp != last_stamp:
                last_stamp, since = stamp, time.monotonic()
            if not stamp or time.monotonic() - since > _DURATION:
                self._write()
                if self.is_mine():
                    return
            elif time.monotonic() > deadline:
                raise self._busy(stamp)
            elif not is_reported:
                is_reported = True
                progress("another deployment is running, or was killed a moment ago; waiting for its lease")
            time.sleep(0.5)

    def confirm(self) -> None:
        """Make sure that the lease is still ours; call this right before traffic moves.

        Raises:
            UnavailableError: another deployment has taken the lease.
        """
        if not self.is_mine():
            raise self._busy(self._tags.read().get(self._name, "nobody"))

    def is_mine(self) -> bool:
        """Return whether the tag names us as its holder now."""
        return self._tags.read().get(self._name, "").startswith(f"{self._me} ")

    def renew_until(self, stop: threading.Event) -> None:
        """Raise the counter in the tag every five seconds, until ``stop`` is set."""
        while not stop.wait(_DURATION / 3):
            # A lost renewal is tried again. A deployment that took the lease meanwhile keeps it.
            with suppress(MlopsError):
                if self.is_mine():
                    self._write()

    def release(self) -> None:
        """Delete the tag, if it is still ours."""
        with suppress(MlopsError):
            stamp = self._tags.read().get(self._name, "")
            if stamp.startswith(f"{self._me} "):
                self._tags.change("Delete", {self._name: stamp})

    def _write(self) -> None:
        self._beats += 1
        self._tags.change("Merge", {self._name: f"{self._me} {self._beats}"})

    def _busy(self, stamp: str) -> UnavailableError:
        return UnavailableError(
            f"another deployment is still running: {stamp}",
            where=f"tag {self._name} of the resource group",
            next_step="wait for its end, and run the command again",
        )


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
