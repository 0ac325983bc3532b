"""Snapshots: the folders of source code that steps run from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from emulators.azureml import storage
from emulators.azureml.world import WORKSPACE, World
from emulators.wire.account import new_id, now
from emulators.wire.http import Request, Response, Routes

routes = Routes(r".*\.api\.azureml\.ms", WS=WORKSPACE)


@routes.on("GET", "/content/v1.0{WS}/snapshots/latest/metadata")
def latest(world: World, request: Request, workspace: str, **_: str) -> Response:
    root = {"name": "", "type": "Directory", "timestamp": now(), "hash": "", "children": {}}
    return Response(200, {"root": root, "id": "00000000-0000-0000-0000-000000000000"})


@routes.on("POST", "/content/v2.0{WS}/snapshots/getblob")
def places(world: World, request: Request, workspace: str, **_: str) -> Response:
    account = world.workspace(workspace).account
    upload = new_id()
    nodes = [
        {"fullName": name, "blobUri": storage.url(account, "snapshots", f"{upload}/{name}")}
        for name in request.json()["FileNames"]
    ]
    return Response(200, {"fileNodes": nodes})


@routes.on("POST", "/content/v2.0{WS}/snapshots/{snapshot}")
def create(world: World, request: Request, workspace: str, snapshot: str, **_: str) -> Response:
    ws = world.workspace(workspace)
    sent = request.json()
    parent = ws.snapshots.get(sent.get("ParentSnapshotId") or "", {})
    blobs = dict(parent)
    for node in sent["FileRevisionList"]["FileNodes"]:
        blobs[node["FullName"]] = node["BlobUri"]
    listed = set(_names(sent["DirTreeNode"]))
    ws.snapshots[snapshot] = {name: uri for name, uri in blobs.items() if name in listed}
    return Response(200, {"id": snapshot})


def _names(node: Any, prefix: str = "") -> list[str]:
    children = node.get("children") or node.get("Children") or {}
    listed = children.items() if isinstance(children, dict) else [(c.get("name") or c.get("Name"), c) for c in children]
    names: list[str] = []
    for name, child in listed:
        if (child.get("type") or child.get("Type") or "").lower() == "directory":
            names += _names(child, f"{prefix}{name}/")
        else:
            names.append(f"{prefix}{name}")
    return names


def restore(world: World, workspace: str, snapshot: str, folder: Path) -> None:
    """Write a snapshot's files into ``folder``."""
    ws = world.workspace(workspace)
    for name, uri in ws.snapshots[snapshot].items():
        container, _, blob = uri.partition("?")[0].split("/", 3)[3].partition("/")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(world.blob(ws.account, container, unquote(blob)), target)
