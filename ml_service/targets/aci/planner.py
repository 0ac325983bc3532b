"""Plan a change on Container Instances: the steps from the groups that are there to what shall serve."""

from __future__ import annotations

import difflib
import json
from typing import Any

from ml_service.azure import errors
from ml_service.azure.version import Version
from ml_service.common.errors import no_previous_version
from ml_service.config import Settings
from ml_service.errors import ConfigurationError
from ml_service.ports import Action, Release, Step
from ml_service.targets.aci import container_group
from ml_service.targets.aci.client import Snapshot, version_of
from ml_service.targets.aci.keys import AciKeys


class Planner:
    """Compares a snapshot with a release, and changes nothing.

    What the steps carry: ``create`` the version of a new group, or None for the keys; ``start``, ``stop`` and
    ``remove`` the name of a group; ``move`` the name of the group that is then the version before, or "".
    """

    def __init__(self, settings: Settings, keys: AciKeys) -> None:
        self._settings = settings
        self._aci = settings.aci
        self._keys = keys

    def steps(self, release: Release, snapshot: Snapshot) -> list[Step]:
        """Return the steps that make ``release`` serve; none when it does.

        Raises:
            ConfigurationError: a setting is missing, or the deployment would not be safe.
            UsageError: the image was never pushed.
        """
        wanted, serving = Version.of(release), version_of(snapshot.current)
        before = container_group.describe(snapshot.current) if snapshot.current else None
        after = container_group.describe(
            container_group.for_version(self._settings, wanted, "", None, self._keys.version())
        )
        if before == after:
            return []
        steps = [
            Step(Action.REMOVE, f"container group {name}, which nothing leads to", detail=name)
            for name in snapshot.orphans
        ]
        if self._keys.vault and not self._keys.vault.is_complete():
            steps.append(Step(Action.CREATE, f"what is missing of {self._keys.vault.description}"))
        # The same version with other settings takes the place of what serves; the version before stays.
        is_same = wanted.same_as(serving)
        kept, obsolete = (snapshot.previous, snapshot.current) if is_same else (snapshot.current, snapshot.previous)
        create = f"a container group for {wanted}, beside what serves"
        steps.append(Step(Action.CREATE, create, _difference(before, after), detail=wanted))
        return [*steps, *_moving_steps(wanted, kept), *self._ending_steps(snapshot, obsolete)]

    def rollback_steps(self, snapshot: Snapshot) -> list[Step]:
        """Return the steps that make the version before serve again, in its own group.

        Raises:
            UsageError: there is none.
        """
        previous, version = snapshot.previous, version_of(snapshot.previous)
        if previous is None or version is None:
            raise no_previous_version("aci")
        start = Step(Action.START, f"{version} in container group {previous.name}", detail=previous.name)
        return [start, *_moving_steps(version, None), *self._ending_steps(snapshot, snapshot.current)]

    def _ending_steps(self, snapshot: Snapshot, obsolete: Any | None) -> list[Step]:
        """Return the steps after the move: nothing leads to the group ``obsolete`` any more."""
        steps, current = [], snapshot.current
        if current is not None:
            stop = f"{version_of(current)}, after {self._aci.drain_seconds:g} s for clients to follow"
            steps.append(Step(Action.STOP, stop, detail=current.name))
        if obsolete is not None:
            remove = f"container group {obsolete.name}: {version_of(obsolete)}"
            steps.append(Step(Action.REMOVE, remove, detail=obsolete.name))
        return steps


def refuse_unsafe(settings: Settings) -> None:
    """Refuse a deployment whose settings are incomplete, or whose keys would be read or lost.

    Raises:
        ConfigurationError: says which setting helps.
    """
    errors.required(settings, "SUBSCRIPTION_ID", "RESOURCE_GROUP", "LOCATION")
    if not settings.aci.tls_image and not settings.aci.allow_http:
        raise ConfigurationError(
            "the address would be public and without TLS: keys and data could be read on the way",
            where="target aci",
            next_step="set ACI_TLS_IMAGE and a certificate; or say that it is meant: --allow-http",
        )
    if settings.azure_pipelines and not settings.azure.keys_vault:
        raise ConfigurationError(
            "the keys would be lost with this agent",
            where="SCORING_KEYS_VAULT",
            next_step="set it to the name of a key vault, such as the Azure ML workspace's own",
        )


def _moving_steps(version: Version, previous: Any | None) -> list[Step]:
    move = f"what status and endpoint name to the address of {version}"
    return [
        Step(Action.VERIFY, f"{version} at its own address", detail=version),
        Step(Action.MOVE, move, detail=previous.name if previous else ""),
    ]


def _difference(before: object, after: object) -> str:
    old = json.dumps(before, indent=1, sort_keys=True).splitlines() if before else []
    new = json.dumps(after, indent=1, sort_keys=True).splitlines()
    return "\n".join(difflib.unified_diff(old, new, "now", "then", lineterm="", n=0))
