"""Check what a deployment to this machine needs: libraries, disk, control socket and port."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ml_service.config import Settings
from ml_service.ports import Finding
from ml_service.targets.local.port import is_chosen, port_for
from ml_service.targets.local.state import LOOPBACK, Paths, Snapshot
from ml_service.targets.local.supervisor_client import socket_address

_LEAST_FREE = 500
"""MB of disk space: a package and its logs, with some to spare."""


def diagnose(settings: Settings, paths: Paths, snapshot: Snapshot) -> Sequence[Finding]:
    """Return a finding for each thing that a deployment needs."""
    directory = next(path for path in (paths.directory, *paths.directory.parents) if path.exists())
    return [_libraries(), _disk(directory), _control_socket(directory), _port(settings, snapshot)]


def _libraries() -> Finding:
    missing = [name for name in ("aiohttp", "filelock", "requests") if find_spec(name) is None]
    detail = f"missing: {', '.join(missing)}" if missing else "installed"
    return Finding("libraries of the local target", not missing, detail, "run: make" if missing else "")


def _disk(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free // 2**20
    ok = free >= _LEAST_FREE and os.access(directory, os.W_OK)
    next_step = "" if ok else f"make it writable, with {_LEAST_FREE} MB free, or set MLOPS_HOME"
    return Finding("disk of the local target", ok, f"{free} MB free at {directory}", next_step)


def _control_socket(directory: Path) -> Finding:
    """Some file systems have no unix sockets, such as Windows' drives under WSL."""
    subject = "control socket of the local target"
    path = directory / f".{os.getpid()}.sock"
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket_address(path) as address:
            listener.bind(address)
    except OSError as error:
        next_step = "set MLOPS_HOME to a directory of a local file system (under WSL below ~, not below /mnt/c)"
        return Finding(subject, False, f"{directory}: {error.strerror}", next_step)
    finally:
        path.unlink(missing_ok=True)
    return Finding(subject, True, f"{directory} can hold it")


def _port(settings: Settings, snapshot: Snapshot) -> Finding:
    subject, port = "port of the local target", port_for(settings, snapshot.state)
    if settings.local.port == 0:
        return Finding(subject, True, "any free one")
    if port == snapshot.state.port and not snapshot.trouble:
        return Finding(subject, True, f"{port}, in use by this target")
    try:
        with socket.create_server((LOOPBACK, port)):
            return Finding(subject, True, f"{port} is free")
    except OSError as error:
        if not is_chosen(settings):
            return Finding(subject, True, f"{port} is in use by another program: a deployment takes a free one")
        return Finding(subject, False, f"{port}: {error.strerror}", "set LOCAL_PORT to a free one, or 0")
