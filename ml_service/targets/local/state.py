"""The files of the local target: where they are, and ``state.json``, which names the versions that it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ml_service.errors import IntegrityError
from ml_service.package import write_json

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Paths:
    """The target's files below ``MLOPS_HOME``. The deployment lock is outside of what ``undeploy`` removes."""

    home: Path

    @property
    def directory(self) -> Path:
        return self.home / "targets" / "local"

    @property
    def deploy_lock(self) -> Path:
        return self.home / "targets" / "local.lock"

    @property
    def supervisor_lock(self) -> Path:
        return self.directory / "supervisor.lock"

    @property
    def state(self) -> Path:
        return self.directory / "state.json"

    @property
    def keys(self) -> Path:
        return self.directory / "secrets" / "keys.json"

    @property
    def packages(self) -> Path:
        return self.directory / "packages"

    @property
    def control(self) -> Path:
        return self.directory / "control.sock"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def log(self) -> Path:
        return self.logs / "local.log"

    def package(self, sha256: str) -> Path:
        """Return the path of the target's own copy of the package with this hash."""
        return self.packages / sha256


@dataclass(frozen=True)
class Version:
    """A version on the target. ``options`` are the ``SCORING_*`` settings that it runs with, none of them a secret.

    ``since`` is UTC, ISO 8601, empty until it serves.
    """

    model: Mapping[str, str]
    build_id: str
    package_sha256: str
    options: Mapping[str, str]
    since: str = ""

    def same_as(self, other: Version | None) -> bool:
        """Return whether both answer alike: the same package, run with the same options."""
        return other is not None and (self.package_sha256, self.options) == (other.package_sha256, other.options)

    def __str__(self) -> str:
        return f"{self.model['name']} version {self.model['version']}"


@dataclass(frozen=True)
class State:
    """``state.json``: the versions that the target holds, and the public port. Only the supervisor writes it."""

    port: int = 0
    current: Version | None = None
    previous: Version | None = None
    format: int = field(default=1, init=False)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read ``path``. Without that file nothing is deployed.

        Raises:
            IntegrityError: the content is not what the supervisor writes.
        """
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            raise _unreadable(path, error) from None
        return cls.of(raw, path)

    @classmethod
    def of(cls, raw: Any, path: Path) -> State:
        """Return the state that ``as_json`` gave; ``path`` is where it was read from.

        Raises:
            IntegrityError: ``raw`` is not such a value.
        """
        try:
            return cls(int(raw["port"]), _version(raw["current"]), _version(raw["previous"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None

    def as_json(self) -> dict[str, Any]:
        """Return the value that ``of`` reads back."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_json(path, self.as_json())


def _version(raw: Any) -> Version | None:
    return None if raw is None else Version(**raw)


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"not a state of the local target ({error!r})", where=str(path), next_step="run: inv undeploy --target local"
    )


@dataclass(frozen=True)
class Snapshot:
    """The target at one moment. ``trouble`` says why it does not serve, and is empty when it does."""

    state: State
    trouble: str
