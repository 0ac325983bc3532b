"""Settings and a console for tests of targets and images."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import Path

from ml_service.config import Settings
from ml_service.console import Console
from tests.support.sources import ROOT


def settings_for(home: Path, **variables: str) -> Settings:
    """Return settings with this ``MLOPS_HOME`` and an image name that no other test uses."""
    env = {"PATH": os.environ["PATH"], "MLOPS_HOME": str(home), "IMAGE_NAME": f"test-{uuid.uuid4().hex[:12]}"}
    for name in ("DOCKER_HOST", "KUBECONFIG"):
        if name in os.environ:
            env[name] = os.environ[name]
    return Settings.from_env({**env, **variables}, ROOT)


def recording_console() -> tuple[Console, io.StringIO]:
    """Return a console and the stream that it prints to."""
    stream = io.StringIO()
    return Console(stream), stream
