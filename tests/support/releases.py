"""Releases of the stub server and of the real one, and what tests do with a release: deploy it, verify it, ask it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import requests

from ml_service import package
from ml_service.ports import Endpoint, ModelVersion, Release, Status, Target
from ml_service.smoke import smoke
from tests.support.sources import ROOT

STUB_SERVER = Path(__file__).with_name("stub_server")

EXAMPLES: Mapping[str, Any] = {
    "tolerance": 1e-6,
    "examples": [
        {"request": {"data": [[1.0, 2.0]]}, "response": {"result": [3.0]}},
        {"request": {"data": [[0.5, 0.25], [10.0, -4.0]]}, "response": {"result": [0.75, 6.0]}},
    ],
}

FIRST_REQUEST: Any = EXAMPLES["examples"][0]["request"]

_CREATED = "2026-01-01T00:00:00+00:00"

MakeRelease = Callable[..., Release]
"""``make(version="1", fault="")``: a release of the stub server, prepared for a rig's target."""


class Preparing(Protocol):
    """A rig that prepares a release for its target."""

    def prepare(self, release: Release) -> Release: ...


def release_maker(rig: Preparing, directory: Path) -> MakeRelease:
    """Return a function that makes releases below ``directory``."""
    releases: list[Release] = []

    def make(version: str = "1", fault: str = "") -> Release:
        releases.append(rig.prepare(make_release(directory / f"release-{len(releases)}", version, fault=fault)))
        return releases[-1]

    return make


def make_release(directory: Path, version: str = "1", *, fault: str = "", name: str = "toy") -> Release:
    """Make a package of the stub server in a new directory. ``fault`` is one of those that ``stub_server`` knows."""
    candidate = directory / "candidate"
    _write_stub_model(candidate / "model", b"no model: the stub server reads examples.json", fault)
    lock = directory / "requirements.txt"
    lock.write_text("")
    registered = ModelVersion(f"{name}:{version}", name, version, _CREATED, {"runtime": "onnx"}, {}, {})
    sha256 = package.build(registered, candidate, STUB_SERVER, lock, directory / "package")
    return Release(directory / "package", sha256, name, version, f"build-{version}")


def make_artifact(directory: Path, version: str = "1", *, fault: str = "", salt: str = "", lock: str = "") -> Path:
    """Make an artifact whose package holds the stub server and this repository's Dockerfile. Return its directory.

    Another ``salt`` makes another package. With an empty ``lock`` the image installs nothing.
    """
    source = directory / "source"
    scoring = source / "scoring"
    shutil.copytree(STUB_SERVER, scoring)
    shutil.copy(ROOT / "scoring" / "Dockerfile", scoring)
    _write_stub_model(source / "candidate" / "model", f"no model {salt}".encode(), fault)
    (source / "lock.txt").write_text(lock)
    tags = {"runtime": "onnx", "build_id": f"build-{version}", "git_commit": "c0ffee"}
    registered = ModelVersion(f"toy:{version}", "toy", version, _CREATED, tags, {}, {})
    artifact = directory / "artifact"
    artifact.mkdir()
    package.build(registered, source / "candidate", scoring, source / "lock.txt", artifact / "package")
    described = {**package.describe(registered, artifact / "package"), "packaging_commit": "decade"}
    package.write_json(artifact / package.MODEL_JSON, described)
    return artifact


def _write_stub_model(model: Path, content: bytes, fault: str) -> None:
    model.mkdir(parents=True)
    (model / "model.onnx").write_bytes(content)
    (model / "signature.json").write_text('{"inputs": [], "outputs": []}')
    (model / "examples.json").write_text(json.dumps(EXAMPLES))
    (model / "fault.txt").write_text(fault)


def make_real_release(directory: Path, version: str, script: str = "") -> Release:
    """Make a release of the real scoring server: Y = AGE + 2 BMI + 3 BP, or what ``script`` makes of it."""
    from tests.support.packages import LINEAR, linear_graph

    model = directory / "candidate" / "model"
    model.mkdir(parents=True)
    if script:
        (model / "score.py").write_text(script)
        (model / "requirements.txt").write_text("")
    else:
        (model / "model.onnx").write_bytes(linear_graph())
    examples = [{"request": {"data": [[1.0, 1.0, 1.0]]}, "response": {"result": [6.0]}}]
    package.write_json(model / "signature.json", LINEAR)
    package.write_json(model / "examples.json", {"tolerance": 1e-6, "examples": examples})
    tags = {"runtime": "script" if script else "onnx"}
    registered = ModelVersion(f"toy:{version}", "toy", version, _CREATED, tags, {}, {})
    lock = ROOT / "requirements" / "scoring.txt"
    sha256 = package.build(registered, directory / "candidate", ROOT / "scoring", lock, directory / "package")
    return Release(directory / "package", sha256, "toy", version, f"build-{version}")


def deploy(target: Target, release: Release, *, canary: int | None = None) -> Status:
    """Plan and apply, and verify the candidate with the release's own examples."""
    plan = target.plan(release, canary_percent=canary)
    return target.apply(plan, lambda endpoint, package: smoke_test(endpoint, release), print)


def smoke_test(endpoint: Endpoint, release: Release) -> None:
    """Verify that the endpoint answers the release's examples."""
    smoke(endpoint, release.package, timeout=60, progress=print)


def no_verification(endpoint: Endpoint, package: Path | None) -> None:
    """Accept any candidate."""


def version_at(endpoint: Endpoint, request: Any = FIRST_REQUEST) -> str:
    """Return the version of the model that answers at the endpoint, as the response's header names it."""
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    response = requests.post(f"{endpoint.url}/score", json=request, headers=headers, timeout=30)
    assert response.status_code == 200
    return response.headers["X-Model-Version"]
