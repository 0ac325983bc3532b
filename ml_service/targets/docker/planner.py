"""Plan a change of the docker target: the steps from what is on the engine to what shall serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_service.common.errors import no_previous_version
from ml_service.config import Settings
from ml_service.config.scoring import server_options
from ml_service.errors import UnavailableError
from ml_service.images.engine import PACKAGE_LABEL
from ml_service.ports import Action, Release, Step
from ml_service.targets.docker.containers import OPTIONS_LABEL, Snapshot, describe, options_label
from ml_service.targets.docker.reader import trouble


class Planner:
    """Compares a snapshot with a release, and changes nothing.

    What the steps carry: ``start`` the name of a container that is there, or None for a new one; ``switch`` the route's
    entry for the version before, or None; ``stop`` and ``remove`` a container's name.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._docker = settings.docker

    def steps(self, release: Release, snapshot: Snapshot) -> list[Step]:
        """Return the steps that make ``release`` serve; none when it does.

        Raises:
            UsageError: neither the engine nor a registry can have its image.
            IntegrityError: its digest names the image of another package.
        """
        if self._serves(snapshot, release):
            return []
        steps = []
        if snapshot.deployment.image_of(release, _ignore, pull=False) is None:
            steps.append(Step(Action.PULL, f"{release.image}@{release.image_digest}"))
        steps += self._proxy_steps(snapshot) + _orphan_steps(snapshot)
        name = f"{release.model_name} version {release.model_version}"
        current, previous = snapshot.container(snapshot.current), snapshot.container(snapshot.previous)
        # The same package with other options takes the place of the version that serves; the one before stays.
        is_same = current is not None and current.labels.get(PACKAGE_LABEL) == release.package_sha256
        steps += self._replacing(name, None, snapshot.previous if is_same else snapshot.current)
        return steps + _ending_steps(current, obsolete=current if is_same else previous)

    def rollback_steps(self, snapshot: Snapshot) -> list[Step]:
        """Return the steps that make the version before serve again.

        Raises:
            UsageError: there is none.
            UnavailableError: its container is gone.
        """
        if snapshot.previous is None:
            raise no_previous_version("docker")
        container, current = snapshot.container(snapshot.previous), snapshot.container(snapshot.current)
        if container is None:
            raise UnavailableError(
                "the container of the version before was removed from the engine",
                where=snapshot.previous["container"],
                next_step="deploy that version's artifact: inv deploy --target docker --artifact DIR",
            )
        steps = self._proxy_steps(snapshot) + self._replacing(describe(container), container.name, None)
        return steps + _ending_steps(current, obsolete=current)

    def options(self) -> dict[str, str]:
        """Return the options of the scoring server. Never a key: those are in a file of their own."""
        return server_options(self._settings.env, self._settings.scoring)

    @property
    def _address(self) -> str:
        return f"{self._docker.bind}:{self._docker.port}"

    def _serves(self, snapshot: Snapshot, release: Release) -> bool:
        container = snapshot.container(snapshot.current)
        if container is None or trouble(snapshot):
            return False
        as_deployed = (container.labels.get(PACKAGE_LABEL), container.labels.get(OPTIONS_LABEL))
        return as_deployed == (release.package_sha256, options_label(self._docker, self.options()))

    def _proxy_steps(self, snapshot: Snapshot) -> list[Step]:
        if snapshot.proxy is None:
            return [Step(Action.CREATE, f"the proxy, which owns {self._address}")]
        if snapshot.proxy.status != "running":
            return [Step(Action.RESTORE, f"the proxy, which owns {self._address}")]
        return []

    def _replacing(self, name: str, start: str | None, previous: Mapping[str, str] | None) -> list[Step]:
        return [
            Step(Action.START, f"{name} beside what serves, until it is healthy", detail=start),
            Step(Action.VERIFY, f"{name} on a private address"),
            Step(Action.SWITCH, f"the traffic of {self._address} to {name}", detail=previous),
        ]


def _orphan_steps(snapshot: Snapshot) -> list[Step]:
    """Return the steps that tidy up after a deployment that was killed."""
    steps = [
        Step(Action.REMOVE, f"container {container.name}, which nothing leads to", detail=container.name)
        for container in snapshot.orphans
    ]
    previous = snapshot.container(snapshot.previous)
    if previous is not None and previous.status == "running":
        steps.append(Step(Action.STOP, f"{describe(previous)}, which serves no longer", detail=previous.name))
    return steps


def _ending_steps(current: Any | None, *, obsolete: Any | None) -> list[Step]:
    """Return the steps after the switch: nothing leads to the container ``obsolete`` any more."""
    steps = []
    if current is not None:
        steps.append(Step(Action.STOP, f"{describe(current)}, once its requests are answered", detail=current.name))
    if obsolete is not None:
        steps.append(Step(Action.REMOVE, f"the container of {describe(obsolete)}", detail=obsolete.name))
    return steps


def _ignore(_: str) -> None:
    """A plan pulls nothing, so it has no progress to show."""
