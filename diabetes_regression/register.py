"""The step ``register``: write down, with its hashes, the model that the gate accepted. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diabetes_regression.errors import DataError, IntegrityError
from diabetes_regression.files import read_object, remove, sha256, to_json, verify_candidate, write

PROJECT = Path(__file__).with_name("project.json")


def register(candidate: Path, verdict: Path, output: Path) -> str:
    """Write ``registration.json`` to ``output`` when the verdict accepts; say in one line what is registered.

    Raises:
        DataError: the verdict does not accept, or belongs to another candidate or no candidate.
        IntegrityError: the candidate is not what ``train`` wrote.
        StorageError: the registration cannot be written.
    """
    remove(output / "registration.json")
    require_acceptance(verdict)
    files = verify_candidate(candidate)
    require_same_candidate(verdict, files)
    registration = make_registration(candidate, files)
    write(output / "registration.json", to_json(registration))
    return f"{output / 'registration.json'}: {registration['model_name']}, {len(registration['files'])} files"


def require_acceptance(path: Path) -> None:
    """Raises DataError unless the verdict in ``path`` accepts."""
    verdict = read_object(path, "run evaluate first")
    if verdict.get("accept") is not True:
        reason = verdict.get("reason", "it gives no reason")
        raise DataError(str(path), f"the verdict does not accept the candidate ({reason})", "train a better one")


def require_same_candidate(path: Path, files: dict[str, str]) -> None:
    """Raises IntegrityError if the verdict is about another candidate; one given without a comparison names none."""
    judged = read_object(path, "run evaluate first").get("candidate_sha256")
    if judged is not None and judged != sha256(to_json(files)):
        raise IntegrityError(str(path), "the verdict is about another candidate", "run evaluate on this one")


def make_registration(candidate: Path, files: dict[str, str]) -> dict[str, Any]:
    """Return the content of ``registration.json``; ``files`` are the hashes of the candidate's files without plots."""
    project = json.loads(PROJECT.read_bytes())
    rows = read_object(candidate / "training-rows.json", "run train again")
    return {
        "model_name": project["model_name"],
        "files": {name: value for name, value in files.items() if not name.startswith("plots/")},
        "metrics": read_object(candidate / "metrics.json", "run train again"),
        "data_sha256": rows.get("data_sha256"),
        "training_rows_sha256": files["training-rows.json"],
        "runtime": project["runtime"],
    }
