"""The options of the scoring server that the tasks pass on, and what a target has to know of them.

The server ships alone and reads its options itself (scoring/scoring_service/settings.py). What is declared here is held
to the server's reader by tests/scoring/test_options.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_service.config.fields import declared, number, read_text, switch, whole

_SET_BY_TARGETS = ("SCORING_HOST", "SCORING_PORT", "SCORING_SOCKET")


@dataclass(frozen=True)
class ScoringSettings:
    """The scoring server, on every target."""

    workers: int = whole(
        "SCORING_WORKERS", 1, least=1, most=64, unit="processes", help="Each worker process loads the model."
    )
    threads: int = whole(
        "SCORING_THREADS", 1, least=1, most=256, unit="threads", help="Threads of ONNX Runtime in one prediction."
    )
    auth: bool = switch("SCORING_AUTH", True, help="off answers requests without a key, and the log warns.")
    max_body: int = whole(
        "SCORING_MAX_BODY", 16 * 1024 * 1024, least=1, most=1 << 31, unit="bytes", help="Size of a request's body."
    )
    max_rows: int = whole("SCORING_MAX_ROWS", 100_000, least=1, most=1 << 31, unit="rows", help="Rows of a request.")
    max_bodies: int = whole(
        "SCORING_MAX_BODIES",
        64 * 1024 * 1024,
        least=1,
        most=1 << 40,
        unit="bytes",
        help="Total size of the request bodies that a worker holds. Requests beyond it get 503.",
    )
    max_header: int = whole(
        "SCORING_MAX_HEADER",
        16 * 1024,
        least=512,
        most=1 << 20,
        unit="bytes",
        help="Size of a request's head, and of a trailer. The request target may have half of it. "
        "A head has at most 100 fields.",
    )
    max_connections: int = whole(
        "SCORING_MAX_CONNECTIONS",
        4096,
        least=1,
        most=1 << 20,
        unit="connections",
        help="Open connections of a worker. At the limit those that showed no key make room, the oldest first. "
        "Beside clients with a key 16 more may ask for /health/live and /health/ready, one request each.",
    )
    max_queue: int = whole(
        "SCORING_MAX_QUEUE",
        64,
        least=1,
        most=1 << 20,
        unit="requests",
        help="Requests of a worker that may wait for the model's thread. Requests beyond it get 503.",
    )
    queue_timeout: float = number(
        "SCORING_QUEUE_TIMEOUT", 5, least=0.01, most=3600, unit="seconds", help="How long a request may wait there."
    )
    timeout: float = number(
        "SCORING_TIMEOUT", 30, least=0.01, most=3600, unit="seconds", help="How long the model may take for a request."
    )
    read_timeout: float = number(
        "SCORING_READ_TIMEOUT",
        30,
        least=0.1,
        most=3600,
        unit="seconds",
        help="From a request's first byte to its last, and for a client to take in the response.",
    )
    idle_timeout: float = number(
        "SCORING_IDLE_TIMEOUT",
        75,
        least=0.1,
        most=86400,
        unit="seconds",
        help="How long an idle connection stays open.",
    )
    drain_timeout: float = number(
        "SCORING_DRAIN_TIMEOUT",
        8,
        least=0,
        most=3600,
        unit="seconds",
        help="From SIGTERM to the end, at most; 3 more when a worker must be killed. "
        "On a cluster the default is a second more than the slowest request may take.",
    )
    drain_idle: float = number(
        "SCORING_DRAIN_IDLE",
        1,
        least=0,
        most=3600,
        unit="seconds",
        help="How long idle connections stay open after SIGTERM, for requests that are on their way.",
    )
    log_requests: bool = switch("SCORING_LOG_REQUESTS", True, help="off leaves out the log line of each request.")


def server_options(env: Mapping[str, str], scoring: ScoringSettings) -> dict[str, str]:
    """Return the options of the scoring server that are the same on every target.

    These are the SCORING_ variables of ``env`` but for its address, which each target decides, and for keys, which go
    another way.
    """
    names = (name for name in env if name.startswith("SCORING_") and "KEY" not in name)
    options = {name: read_text(env, name) for name in names if name not in _SET_BY_TARGETS}
    return {**{name: value for name, value in options.items() if value}, "SCORING_WORKERS": str(scoring.workers)}


def option(options: Mapping[str, str], field: str) -> Any:
    """Return the value of a field of ScoringSettings in the options of one server, or its default.

    Raises:
        ConfigurationError: the value is not what its setting expects.
    """
    setting = declared(ScoringSettings)[field]
    return setting.value(read_text(options, setting.name) or setting.default)


def requires_key(options: Mapping[str, str]) -> bool:
    """Return False when a server that runs with these options answers without a key.

    A server does not start on a word that it cannot read, so such a word turns nothing off.
    """
    return read_text(options, "SCORING_AUTH").lower() != "off"
