"""Settings of the target docker."""

from __future__ import annotations

from dataclasses import dataclass

from ml_service.config.fields import number, text, whole


@dataclass(frozen=True)
class DockerSettings:
    """Target docker: an endpoint on a container engine."""

    name: str = text(
        "DOCKER_NAME",
        from_project=True,
        help="The name of what is created on the engine. Deployments with different names can run next to each other.",
    )
    port: int = whole("DOCKER_PORT", 8090, least=1, most=65535, help="The port of the endpoint.")
    bind: str = text("DOCKER_BIND", "127.0.0.1", help="The address of the endpoint.")
    memory: int = whole(
        "DOCKER_MEMORY_MB", 1024, least=64, most=1 << 20, unit="MB", help="How much memory a version may use."
    )
    cpus: float = number("DOCKER_CPUS", 1, least=0.1, unit="cores", help="How many cores a version may use.")
    startup_timeout: float = number(
        "DOCKER_STARTUP_TIMEOUT", 60, least=1, unit="seconds", help="How long a version may take to become ready."
    )
    drain_timeout: float = number(
        "DOCKER_DRAIN_TIMEOUT",
        30,
        least=0,
        unit="seconds",
        help="How long the version before may take to finish its requests.",
    )
