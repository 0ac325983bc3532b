"""Read manifests from files with ``${name}`` in them, and show the difference of two objects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_service.targets.aks.client import Object

_PLACEHOLDER = re.compile(r"\$\{([a-z0-9_]+)\}")

_SERVER_FIELDS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
"""Metadata that the server writes at each change."""


def load(path: Path, values: Mapping[str, Any]) -> Object:
    """Return the manifest with its placeholders filled in.

    YAML is parsed first, so a value cannot add YAML of its own. A value that is the whole text keeps its type.
    """
    import yaml

    manifest: Object = _fill(yaml.safe_load(path.read_text(encoding="utf-8")), values)
    return manifest


def _fill(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {_fill(key, values): _fill(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, values) for value in node]
    if not isinstance(node, str):
        return node
    whole = _PLACEHOLDER.fullmatch(node)
    return values[whole[1]] if whole else _PLACEHOLDER.sub(lambda match: str(values[match[1]]), node)


def difference(before: Object | None, after: Object) -> str:
    """Return a unified diff of two objects without status and the server's own metadata; empty when nothing changes."""
    old, new = _readable(before), _readable(after)
    name = f"{after['kind']}/{after['metadata']['name']}"
    lines = difflib.unified_diff(old, new, f"{name} now", f"{name} then", lineterm="", n=2)
    return "\n".join(lines)


def _readable(body: Object | None) -> list[str]:
    import yaml

    if body is None:
        return []
    metadata = {name: value for name, value in body["metadata"].items() if name not in _SERVER_FIELDS}
    annotations = metadata.get("annotations", {})
    own = {name: value for name, value in annotations.items() if not name.startswith("deployment.kubernetes.io/")}
    metadata = {**metadata, "annotations": own} if own else {k: v for k, v in metadata.items() if k != "annotations"}
    parts = {name: value for name, value in body.items() if name != "status"}
    return str(yaml.safe_dump({**parts, "metadata": metadata}, sort_keys=True)).splitlines()
