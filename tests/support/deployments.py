"""What tests of targets say in one word: deploy a release, question an endpoint, ask which version answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import requests

from ml_service.ports import Endpoint, Release, Status, Target
from ml_service.smoke import smoke
from tests.support.fake_target import EXAMPLES, make_release

MakeRelease = Callable[..., Release]
"""``make(version="1", fault="")``: a release of the stand-in server, ready for a rig's target."""


class Preparing(Protocol):
    """A rig that makes a release ready for its target."""

    def prepare(self, release: Release) -> Release: ...


def releases(rig: Preparing, directory: Path) -> MakeRelease:
    """Makes releases below ``directory``."""
    made: list[Release] = []

    def make(version: str = "1", fault: str = "") -> Release:
        made.append(rig.prepare(make_release(directory / f"release-{len(made)}", version, fault=fault)))
        return made[-1]

    return make


def deploy(target: Target, release: Release, *, canary: int | None = None) -> Status:
    """Plan and apply, with the release's own examples as the question."""
    plan = target.plan(release, canary_percent=canary)
    return target.apply(plan, lambda endpoint, package: question(endpoint, release), print)


def question(endpoint: Endpoint, release: Release) -> None:
    """The smoke test."""
    smoke(endpoint, release.package, timeout=60, progress=print)


def no_question(endpoint: Endpoint, package: Path | None) -> None:
    """Verifies nothing."""


def version_at(endpoint: Endpoint, request: Any = EXAMPLES["examples"][0]["request"]) -> str:
    """The version that the stand-in server says it is."""
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    answer = requests.post(f"{endpoint.url}/score", json=request, headers=headers, timeout=30)
    assert answer.status_code == 200
    return answer.headers["X-Model-Version"]
