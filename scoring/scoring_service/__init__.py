"""The scoring service. Its entries are ``score.py`` and ``server.py``, beside this package."""

import os

TELEMETRY_SWITCHES = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "ORT_DISABLE_TELEMETRY": "1"}
"""No library may call anybody or leave files in HOME. They read these when they are imported, a script's, too."""

os.environ.update(TELEMETRY_SWITCHES)
