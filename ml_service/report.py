"""The output of ``inv status`` and ``inv keys``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ml_service.errors import MlopsError
from ml_service.ports import Keys, Status


def status_json(status: Status | None) -> str:
    """Return the status with the fields that docs/commands.md promises; ``null`` when nothing is deployed."""
    return json.dumps(_status_fields(status), indent=2)


def _status_fields(status: Status | None) -> dict[str, Any] | None:
    if status is None:
        return None
    fields = asdict(status)
    del fields["state"]
    return fields


def overview_json(outcomes: Mapping[str, Status | MlopsError | None]) -> str:
    """Return one object for each target: its name, the status as ``status_json`` has it, and why there is none."""
    rows: list[dict[str, Any]] = [
        {"target": target, "status": None, "error": f"{outcome.where}: {outcome.what}"}
        if isinstance(outcome, MlopsError)
        else {"target": target, "status": _status_fields(outcome), "error": ""}
        for target, outcome in outcomes.items()
    ]
    return json.dumps(rows, indent=2)


def overview_text(outcomes: Mapping[str, Status | MlopsError | None]) -> str:
    """Return one line for each target; one that cannot be reached says so."""
    return "\n".join(f"{target:<8} {_in_one_line(outcome)}" for target, outcome in outcomes.items())


def _in_one_line(outcome: Status | MlopsError | None) -> str:
    if isinstance(outcome, MlopsError):
        return f"unknown: {outcome.where}: {outcome.what.splitlines()[0]}"
    if outcome is None:
        return "nothing is deployed"
    model = f"{outcome.model['name']}:{outcome.model['version']}"
    before = f", before it version {outcome.previous['version']}" if outcome.previous else ""
    return f"{model} {outcome.state} at {outcome.url}/score since {outcome.since}{before}"


def status_text(target: str, status: Status | None) -> str:
    """Return the status for a person."""
    if status is None:
        return f"nothing is deployed on {target}: inv deploy --target {target}"
    previous = f"{status.previous['name']}:{status.previous['version']}" if status.previous else "none"
    rows = {
        "target": status.target,
        "state": status.state,
        "url": status.url,
        "model": f"{status.model['name']}:{status.model['version']}",
        "build": status.build_id,
        "package": status.package_sha256,
        "image": status.image_digest or "none",
        "since": status.since,
        "previous": previous,
    }
    return "\n".join(f"{name:<9} {value}" for name, value in rows.items())


def keys_text(keys: Keys, *, show: bool, as_json: bool) -> str:
    """Return the names of the keys; their values only with ``show``."""
    values = {"primary": keys.primary, "secondary": keys.secondary}
    if as_json:
        return json.dumps(values if show else list(values), indent=2)
    return "\n".join(f"{name:<9} {value}" if show else name for name, value in values.items())
