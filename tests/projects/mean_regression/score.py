"""Answers every row with the mean that training found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_mean = 0.0


def init() -> None:
    """Read the mean from beside this file."""
    global _mean
    _mean = json.loads((Path(__file__).parent / "mean.json").read_bytes())


def run(raw: str) -> dict[str, Any]:
    """``{"data": [[x], …]}`` to ``{"result": [mean, …]}``."""
    return {"result": [_mean for _ in json.loads(raw)["data"]]}
