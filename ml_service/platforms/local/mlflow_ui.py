"""Serve MLflow's web pages on the tracking store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from ml_service.config import Settings
from ml_service.console import Console
from ml_service.errors import UnavailableError, UsageError
from ml_service.project import read_project
from ml_service.telemetry import SWITCHES

# The pages need no background jobs, and a person needs no warnings about MLflow's libraries.
_QUIET = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    **SWITCHES,
    "PYTHONWARNINGS": "ignore",
}


def serve(settings: Settings, console: Console, port: int) -> None:
    """Serve the pages on loopback until interrupted.

    Raises:
        UsageError: the store is a server, which has pages of its own, or ``port`` is not a port.
        UnavailableError: the port is in use, or MLflow does not start.
    """
    uri = settings.tracking_uri
    if uri.startswith(("http://", "https://")):
        raise UsageError(
            "the tracking store is a server", where="MLFLOW_TRACKING_URI", next_step="open its address in a browser"
        )
    if not 0 < port < 65536:
        raise UsageError(f"invalid port {port}", where="--port", next_step="use a number from 1 to 65535")
    _refuse_used(port)
    _open_store(settings)
    model = settings.model_name or read_project(settings.root, settings.project).model_name
    console.progress("starting MLflow's pages, which takes some seconds")
    process = subprocess.Popen(_command(port), env={**os.environ, **_addresses(settings), **_QUIET})
    try:
        _wait_until_ready(process, port)
        console.line(f"runs:   http://127.0.0.1:{port}/#/experiments")
        console.line(f"models: http://127.0.0.1:{port}/#/models/{model}")
        console.line("Ctrl-C ends it")
        process.wait()
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    import requests

    while process.poll() is None:
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise UnavailableError("MLflow's pages did not start", where="inv ui", next_step="read its log above")


def _command(port: int) -> list[str]:
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*server, "--uvicorn-opts", "--log-level warning"]


def _addresses(settings: Settings) -> dict[str, str]:
    from ml_service.platforms.local.mlflow_store import default_uri

    uri = settings.tracking_uri or default_uri(settings.store)
    # By the environment: an address may hold a password, and a command line is visible to all.
    return {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (settings.store / "artifacts").as_uri(),
        "MLFLOW_TRACKING_URI": "",
    }


def _open_store(settings: Settings) -> None:
    """Create the database where there is none yet, under its lock: the server would do so without one."""
    from ml_service.platforms.local.mlflow_store import MlflowStore

    MlflowStore(settings.tracking_uri, Path(settings.store), settings.experiment)


def _refuse_used(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UnavailableError(
                f"port {port} cannot be used: {error.strerror}", where="--port", next_step=f"inv ui --port {port + 1}"
            ) from None
