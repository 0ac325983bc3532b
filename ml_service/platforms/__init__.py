"""Adapters of the platform port: one folder a platform, imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ml_service.config import PLATFORMS, Settings
from ml_service.errors import UsageError
from ml_service.ports import Platform

_ADAPTERS = {
    "local": "ml_service.platforms.local.platform:LocalPlatform",
    "azureml": "ml_service.platforms.azureml_v1.platform:AzureMlPlatform",
}


def open_platform(settings: Settings) -> Platform:
    """Return the adapter that ``settings.platform`` names. It connects to nothing yet.

    Raises:
        UsageError: the platform is unknown, or not part of this version.
    """
    if settings.platform not in _ADAPTERS:
        why = "is not part of this version" if settings.platform in PLATFORMS else "is unknown"
        raise UsageError(
            f"the platform {settings.platform!r} {why}",
            where="--platform",
            next_step=f"use one of: {', '.join(sorted(_ADAPTERS))}",
        )
    module, _, adapter = _ADAPTERS[settings.platform].partition(":")
    return cast(Platform, getattr(import_module(module), adapter)(settings))
