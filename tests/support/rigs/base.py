"""What the contract suites need to run an adapter: one class for targets, one for platforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from ml_service.ports import Endpoint, ModelVersion, Platform, Release, Target


class TargetRig(ABC):
    """A target on which nothing is deployed, under a name that no other test uses.

    A subclass takes a new directory, sets ``target``, and skips the test where what it needs is missing.
    """

    marks: ClassVar[Sequence[pytest.MarkDecorator]] = ()
    """Marks of every test that runs on the rig."""

    clients: ClassVar[int] = 8
    """How many clients ask at once while versions change."""

    target: Target

    def __init__(self, directory: Path) -> None:
        """``directory`` is new and empty."""

    @abstractmethod
    def open(self) -> Target:
        """Return another object for the same deployment, as another task has it."""

    def prepare(self, release: Release) -> Release:
        """Return the release with what the target needs to deploy it, such as an image."""
        return release

    def under_load(self) -> tuple[Target, Callable[[], Endpoint] | None]:
        """Return the target to change under load.

        Where each version has an address of its own, also return how its clients learn the present one.
        """
        return self.target, None

    def close(self) -> None:
        """Remove what the test deployed."""
        self.open().undeploy(print)


class PlatformRig(ABC):
    """A platform on an empty store, and a repository with the project ``mean_regression`` at ``root``.

    A subclass takes a new directory, sets ``root``, and skips the test where what it needs is missing.
    """

    marks: ClassVar[Sequence[pytest.MarkDecorator]] = (pytest.mark.slow,)
    """Marks of every test that runs on the rig."""

    root: Path

    def __init__(self, directory: Path) -> None:
        """``directory`` is new and empty."""

    @abstractmethod
    def open(self) -> Platform:
        """Return another object for the same store, as another task has it."""

    @abstractmethod
    def damage(self, version: ModelVersion) -> None:
        """Change a file of a registered version without the adapter's knowledge."""

    def unreachable(self) -> Platform | None:
        """Return the adapter as it is when its service is down. None if it has no service."""
        return None

    def close(self) -> None:
        """Stop what the rig started."""
