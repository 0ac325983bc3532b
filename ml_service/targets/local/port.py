"""The public port of the local target: LOCAL_PORT, or the default as a first choice."""

from __future__ import annotations

from ml_service.config import LocalSettings, Settings
from ml_service.targets.local.state import State


def is_chosen(settings: Settings) -> bool:
    """Return whether LOCAL_PORT is set. Otherwise a free port takes the place of a default that is in use."""
    return settings.local.port != LocalSettings.port or bool(settings.env.get("LOCAL_PORT"))


def port_for(settings: Settings, state: State) -> int:
    """Return the port of the endpoint, 0 for any free one. A port that nobody chose stays what it was."""
    port = settings.local.port
    stays = port == 0 or not is_chosen(settings)
    return state.port or port if stays else port
