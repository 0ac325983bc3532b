"""Settings of the target local."""

from __future__ import annotations

from dataclasses import dataclass

from ml_service.config.fields import number, whole


@dataclass(frozen=True)
class LocalSettings:
    """Target local: an endpoint on this machine."""

    port: int = whole(
        "LOCAL_PORT",
        8080,
        least=0,
        most=65535,
        fallback="8080, or a free port when that is in use",
        help="The port of the endpoint on loopback. 0: any free one, which is used from then on.",
    )
    startup_timeout: float = number(
        "LOCAL_STARTUP_TIMEOUT", 60, least=1, unit="seconds", help="How long a new version may take to become ready."
    )
    drain_timeout: float = number(
        "LOCAL_DRAIN_TIMEOUT",
        30,
        least=0,
        unit="seconds",
        help="How long the version before may take to finish its requests.",
    )
