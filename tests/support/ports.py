"""Ports for tests that must name one before somebody listens there."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A port of loopback that nobody listens on now.

    It lies below those that the system gives out by itself, so that no connection or server of another test takes it in
    the meantime.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
