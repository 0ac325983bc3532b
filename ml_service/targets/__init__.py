"""Where packages are deployed: one module per kind of target, imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ml_service.config import TARGETS, Settings
from ml_service.errors import UsageError
from ml_service.ports import Target

_ADAPTERS = {
    "local": "ml_service.targets.local.target:LocalTarget",
    "webapp": "ml_service.targets.webapp.target:WebAppTarget",
    "aci": "ml_service.targets.aci.target:AciTarget",
    "aks": "ml_service.targets.aks.target:AksTarget",
    "docker": "ml_service.targets.docker.target:DockerTarget",
}


def open_target(name: str, settings: Settings) -> Target:
    """The adapter of the target ``name``; it reads ``settings`` and touches nothing yet.

    Raises:
        UsageError: there is no such target.
    """
    if name not in _ADAPTERS:
        why = "is not part of this version" if name in TARGETS else "is unknown"
        raise UsageError(
            f"the target {name!r} {why}", where="--target", next_step=f"use one of: {', '.join(sorted(_ADAPTERS))}"
        )
    module, _, adapter = _ADAPTERS[name].partition(":")
    return cast(Target, getattr(import_module(module), adapter)(settings))
