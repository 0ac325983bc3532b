"""Adapters of the platform port: one module a platform, imported when it is used."""

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
    """The adapter that ``settings.platform`` names; it touches nothing yet.

    Raises:
        UsageError: there is no such platform.
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
