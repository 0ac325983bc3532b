"""The switches of libraries that would report their use to somebody: this is the one list.

Nobody is called, by tasks, training, tests or the scoring service. That one has a copy in
``scoring_service/__init__.py``; ``tests/architecture/test_telemetry.py`` compares the two, and fails when a lock brings
a library that is known to report and has no switch here.
"""

from __future__ import annotations

import os

SWITCHES = {
    "DO_NOT_TRACK": "true",  # https://consoledonottrack.com
    "MLFLOW_DISABLE_TELEMETRY": "true",  # https://mlflow.org/docs/latest/community/usage-tracking
    # Without it each session leaves a device id and a queue in HOME, and calls events.data.microsoft.com.
    "ORT_DISABLE_TELEMETRY": "1",
}


def turn_off() -> None:
    """Set the switches in this process, which its children inherit. Call this before the libraries are imported."""
    os.environ.update(SWITCHES)
