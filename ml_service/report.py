"""What ``inv status`` and ``inv keys`` print."""

from __future__ import annotations

import json
from dataclasses import asdict

from ml_service.ports import Keys, Status


def status_json(status: Status | None) -> str:
    """Return the status with the fields that docs/commands.md promises; ``null`` when nothing is deployed."""
    if status is None:
        return "null"
    fields = asdict(status)
    del fields["state"]
    return json.dumps(fields, indent=2)


def status_text(target: str, status: Status | None) -> str:
    """The status for a person."""
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
    """The names of the keys; their values only with ``show``."""
    values = {"primary": keys.primary, "secondary": keys.secondary}
    if as_json:
        return json.dumps(values if show else list(values), indent=2)
    return "\n".join(f"{name:<9} {value}" if show else name for name, value in values.items())
