"""Where packages are deployed: a folder for each target, imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ml_service.config import Settings
    from ml_service.ports import Target

_ADAPTERS = {
    "local": "LocalTarget",
    "docker": "DockerTarget",
    "aks": "AksTarget",
    "aci": "AciTarget",
    "webapp": "WebAppTarget",
}
"""The class of each target, in ``ml_service/targets/NAME/target.py``. This is the only list of targets."""

TARGETS = tuple(_ADAPTERS)


def open_target(name: str, settings: Settings) -> Target:
    """Return the adapter of the target ``name``; it reads ``settings`` and opens no connection yet.

    Raises:
        UsageError: there is no such target.
    """
    if name not in _ADAPTERS:
        from ml_service.errors import UsageError

        raise UsageError(
            f"unknown target {name!r}", where="--target", next_step=f"use one of: {', '.join(sorted(TARGETS))}"
        )
    return cast("Target", getattr(import_module(f"ml_service.targets.{name}.target"), _ADAPTERS[name])(settings))
