"""Azure ML's contract: ``init()`` once, then ``run(raw)`` for each request. ``AZUREML_MODEL_DIR`` names the package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Azure ML loads this file by its path, which does not make the package beside it importable. The folder does not stay
# on the path: server.py and score.py are names that others may use.
_FOLDER = str(Path(__file__).resolve().parent)
sys.path.insert(0, _FOLDER)

from scoring_service.errors import RequestError, StartError  # noqa: E402
from scoring_service.model.scorer import Scorer, load  # noqa: E402

sys.path.remove(_FOLDER)

MAX_ROWS = 100_000

_scorer: Scorer | None = None


def init() -> None:
    """Verify and load the package's model.

    Raises:
        StartError: AZUREML_MODEL_DIR is not set, or the package is invalid.
    """
    global _scorer
    directory = os.environ.get("AZUREML_MODEL_DIR")
    if not directory:
        raise StartError("is not set", where="AZUREML_MODEL_DIR", next_step="set it to the package directory")
    _scorer = load(Path(directory), MAX_ROWS)


def run(raw: str | bytes) -> dict[str, Any]:
    """Return ``{"result": […]}`` for ``{"data": [[…], …]}``.

    Raises:
        ValueError: the request is invalid; the message says where.
    """
    if _scorer is None:
        raise RuntimeError("init() has not been called")
    try:
        return _scorer.answer(raw.encode() if isinstance(raw, str) else raw)
    except RequestError as error:
        raise ValueError(f"{error.place}: {error.message}" if error.place else error.message) from error
