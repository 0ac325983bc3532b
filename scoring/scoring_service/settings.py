"""The service's settings: one frozen value, read once from the environment. docs/scoring.md explains each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scoring_service.errors import ConfigurationError


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes, times in seconds; limits hold for each worker."""

    package: Path
    host: str = "127.0.0.1"
    port: int = 5001
    socket: str = ""
    workers: int = 1
    threads: int = 1
    auth: bool = True
    keys_file: str = ""
    max_body: int = 16 * 1024 * 1024
    max_bodies: int = 64 * 1024 * 1024
    max_rows: int = 100_000
    max_header: int = 16 * 1024
    max_connections: int = 4096
    max_queue: int = 64
    queue_timeout: float = 5.0
    timeout: float = 30.0
    read_timeout: float = 30.0
    idle_timeout: float = 75.0
    drain_timeout: float = 8.0
    drain_idle: float = 1.0
    log_requests: bool = True

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read ``env``; raises ConfigurationError naming the setting that cannot be meant."""
        read = _Reader(env)
        package = read.text("AZUREML_MODEL_DIR", "")
        if not package:
            raise ConfigurationError(
                "is not set",
                where="AZUREML_MODEL_DIR",
                next_step="set it to the package directory, which holds manifest.json",
            )
        return cls(
            package=Path(package),
            host=read.text("SCORING_HOST", cls.host),
            port=int(read.number("SCORING_PORT", cls.port, 0, 65535)),
            socket=read.text("SCORING_SOCKET", cls.socket),
            workers=int(read.number("SCORING_WORKERS", cls.workers, 1, 256)),
            threads=int(read.number("SCORING_THREADS", cls.threads, 1, 256)),
            auth=read.flag("SCORING_AUTH", cls.auth),
            keys_file=read.text("SCORING_KEYS_FILE", cls.keys_file),
            max_body=int(read.number("SCORING_MAX_BODY", cls.max_body, 1, 1 << 31)),
            max_bodies=int(read.number("SCORING_MAX_BODIES", cls.max_bodies, 1, 1 << 40)),
            max_rows=int(read.number("SCORING_MAX_ROWS", cls.max_rows, 1, 1 << 31)),
            max_header=int(read.number("SCORING_MAX_HEADER", cls.max_header, 512, 1 << 20)),
            max_connections=int(read.number("SCORING_MAX_CONNECTIONS", cls.max_connections, 1, 1 << 20)),
            max_queue=int(read.number("SCORING_MAX_QUEUE", cls.max_queue, 1, 1 << 20)),
            queue_timeout=read.number("SCORING_QUEUE_TIMEOUT", cls.queue_timeout, 0.01, 3600),
            timeout=read.number("SCORING_TIMEOUT", cls.timeout, 0.01, 3600),
            read_timeout=read.number("SCORING_READ_TIMEOUT", cls.read_timeout, 0.1, 3600),
            idle_timeout=read.number("SCORING_IDLE_TIMEOUT", cls.idle_timeout, 0.1, 86400),
            drain_timeout=read.number("SCORING_DRAIN_TIMEOUT", cls.drain_timeout, 0, 3600),
            drain_idle=read.number("SCORING_DRAIN_IDLE", cls.drain_idle, 0, 3600),
            log_requests=read.flag("SCORING_LOG_REQUESTS", cls.log_requests),
        )


class _Reader:
    """Typed reads of an environment; an empty variable counts as unset."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str, default: str) -> str:
        return self._env.get(name, "").strip() or default

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name, "on" if default else "off").lower()
        if value not in ("on", "off"):
            raise ConfigurationError(f"{value!r} is neither on nor off", where=name, next_step=f"set {name}=on")
        return value == "on"

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """Return a number from ``least`` to ``most``; whole when the default is."""
        value = self.text(name, str(default))
        try:
            number = int(value) if isinstance(default, int) else float(value)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            kind = "whole number" if isinstance(default, int) else "number"
            raise ConfigurationError(
                f"{value!r} is not a {kind} from {least:g} to {most:g}",
                where=name,
                next_step=f"unset {name}, or correct it",
            )
        return number
