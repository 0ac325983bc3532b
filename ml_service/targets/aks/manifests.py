"""Manifests as files with ``${name}`` in them, and how two objects differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_service.targets.aks.client import Object

_PLACE = re.compile(r"\$\{([a-z0-9_]+)\}")

_NOISE = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")


def load(path: Path, values: Mapping[str, Any]) -> Object:
    """The manifest with its places filled in. A value never becomes more YAML; alone in its place it keeps its type."""
    import yaml

    filled: Object = _filled(yaml.safe_load(path.read_text(encoding="utf-8")), values)
    return filled


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {_filled(key, values): _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, values) for value in node]
    if not isinstance(node, str):
        return node
    whole = _PLACE.fullmatch(node)
    return values[whole[1]] if whole else _PLACE.sub(lambda match: str(values[match[1]]), node)


def difference(before: Object | None, after: Object) -> str:
    """A unified diff of what a person cares about; empty when nothing changes."""
    old, new = _readable(before), _readable(after)
    name = f"{after['kind']}/{after['metadata']['name']}"
    lines = difflib.unified_diff(old, new, f"{name} now", f"{name} then", lineterm="", n=2)
    return "\n".join(lines)


def _readable(body: Object | None) -> list[str]:
    import yaml

    if body is None:
        return []
    metadata = {name: value for name, value in body["metadata"].items() if name not in _NOISE}
    annotations = metadata.get("annotations", {})
    kept = {name: value for name, value in annotations.items() if not name.startswith("deployment.kubernetes.io/")}
    metadata = {**metadata, "annotations": kept} if kept else {k: v for k, v in metadata.items() if k != "annotations"}
    shown = {name: value for name, value in body.items() if name != "status"}
    return str(yaml.safe_dump({**shown, "metadata": metadata}, sort_keys=True)).splitlines()
