"""Pinned schemas of routes and Gateways: checks by them, and custom resource definitions made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

SCHEMAS = Path(__file__).with_name("schemas")

_FILES: Mapping[tuple[str, str], str] = {
    ("gateway.networking.k8s.io", "HTTPRoute"): "HTTPRoute.json",
    ("gateway.networking.k8s.io", "Gateway"): "Gateway.json",
    ("networking.istio.io", "VirtualService"): "VirtualService.json",
    ("networking.istio.io", "Gateway"): "IstioGateway.json",
}
_PLURALS = {"HTTPRoute": "httproutes", "Gateway": "gateways", "VirtualService": "virtualservices"}
VERSIONS = {"gateway.networking.k8s.io": ("v1",), "networking.istio.io": ("v1beta1", "v1")}


def schema(group: str, kind: str) -> Any:
    """As it is pinned."""
    return json.loads((SCHEMAS / _FILES[group, kind]).read_text(encoding="utf-8"))


def violations(body: Mapping[str, Any]) -> Sequence[str]:
    """What the pinned schema has against an object; a field that it does not know is one, since servers drop those."""
    group, _, version = body["apiVersion"].partition("/")
    pinned = _closed(_structural(schema(group, body["kind"])))
    pinned["properties"]["apiVersion"] = {"enum": [f"{group}/{known}" for known in VERSIONS[group]]}
    pinned["properties"]["kind"] = {"enum": [body["kind"]]}
    pinned["properties"]["metadata"] = {"type": "object"}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(pinned).iter_errors(body)]


def definition(group: str, kind: str) -> dict[str, Any]:
    """A custom resource definition by which a cluster checks objects as one with the real one does."""
    plural = _PLURALS[kind]
    pinned = _structural(schema(group, kind))
    versions = [
        {
            "name": version,
            "served": True,
            "storage": version == VERSIONS[group][0],
            "schema": {"openAPIV3Schema": pinned},
            "subresources": {"status": {}},
        }
        for version in VERSIONS[group]
    ]
    approval = {"api-approved.kubernetes.io": "unapproved, for tests"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": approval, "labels": {"mlops/made-by": "tests"}},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": versions,
        },
    }


def _structural(pinned: Any) -> Any:
    """As a cluster takes it: what it checks by itself is left to it, and a map of values has no named fields."""
    properties = dict(pinned["properties"])
    properties["apiVersion"] = properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    required = [name for name in pinned.get("required", []) if name not in ("apiVersion", "kind")]
    found = _cleaned({**pinned, "properties": properties})
    return {**{name: value for name, value in found.items() if name != "required"}, "required": required}


def _cleaned(node: Any) -> Any:
    if isinstance(node, list):
        return [_cleaned(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {name: _cleaned(value) for name, value in node.items()}
    if found.get("properties") == {} and found.get("type") == "object":
        del found["properties"]
        if "additionalProperties" not in found:
            found["x-kubernetes-preserve-unknown-fields"] = True
    return found


def _closed(node: Any) -> Any:
    """Objects have no fields but the named ones. Alternatives name some again, and are left as they are."""
    if not isinstance(node, dict):
        return node
    found = {name: value if name in ("oneOf", "anyOf", "not") else _closed(value) for name, value in node.items()}
    if isinstance(found.get("properties"), dict) and "additionalProperties" not in found and "type" in found:
        found["additionalProperties"] = False
    return found
