"""What the local target keeps on disk, and how a task talks to its supervisor."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ml_service.errors import IntegrityError
from ml_service.package import write_json

LOOPBACK = "127.0.0.1"

_LONGEST_SOCKET_PATH = 100
"""Bytes; the system's own limit is 107 on Linux, 103 on macOS."""

_working_directory = threading.Lock()


@dataclass(frozen=True)
class Paths:
    """Where things are below ``MLOPS_HOME``. The deployment lock lies outside of what ``undeploy`` removes."""

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
        """The target's own copy of the package with this hash."""
        return self.packages / sha256


@dataclass(frozen=True)
class Deployed:
    """One version on the target. ``options`` are the ``SCORING_*`` settings that it runs with, none of them a secret.

    ``since`` is UTC, ISO 8601, empty until it serves.
    """

    model: Mapping[str, str]
    build_id: str
    package_sha256: str
    options: Mapping[str, str]
    since: str = ""

    def same_as(self, other: Deployed | None) -> bool:
        """Whether both would answer alike: the same package, run in the same way."""
        return other is not None and (self.package_sha256, self.options) == (other.package_sha256, other.options)

    def __str__(self) -> str:
        return f"{self.model['name']} version {self.model['version']}"


@dataclass(frozen=True)
class State:
    """``state.json``: which versions the target holds, and the port that clients know. The supervisor writes it."""

    port: int = 0
    current: Deployed | None = None
    previous: Deployed | None = None
    format: int = field(default=1, init=False)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read ``path``; without that file, nothing is deployed.

        Raises:
            IntegrityError: the file is not what the supervisor writes.
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
        """A state from its JSON; ``path`` is where it came from, for the message."""
        try:
            return cls(int(raw["port"]), _deployed(raw["current"]), _deployed(raw["previous"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None

    def as_json(self) -> dict[str, Any]:
        """The value that ``of`` reads back."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_json(path, self.as_json())


def _deployed(raw: Any) -> Deployed | None:
    return None if raw is None else Deployed(**raw)


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"is not a state of the local target ({error!r})", where=str(path), next_step="run: inv undeploy --target local"
    )


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """An address for the socket at ``path`` that fits the system's limit, for as long as the block lasts."""
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        yield str(path)
    elif sys.platform == "linux":
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{directory}/{path.name}"
        finally:
            os.close(directory)
    else:
        with _inside(path.parent):
            yield path.name


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    with _working_directory:
        before = os.getcwd()
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(before)


class Refused(Exception):
    """The supervisor's answer to a command that it could not carry out. ``log`` holds a candidate's last lines."""

    def __init__(self, kind: str, message: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.log = log


class Gone(Exception):
    """No supervisor listens, or it went away in the middle of a command."""


class Control:
    """A conversation with the supervisor: one JSON object a line. A candidate lives as long as the conversation."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_address(path) as address:
                self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise Gone(str(error)) from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; a candidate that does not serve yet is removed."""
        self._lines.close()
        self._socket.close()

    def ask(self, command: str, *, progress: Callable[[str], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Send ``command`` and return its answer; lines about progress go to ``progress`` meanwhile.

        Raises:
            Refused: the supervisor says why it could not.
            Gone: it went away before it answered.
        """
        try:
            self._socket.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            while line := self._lines.readline():
                answer: dict[str, Any] = json.loads(line)
                if "progress" not in answer:
                    return _accepted(answer)
                if progress is not None:
                    progress(answer["progress"])
        except OSError as error:
            raise Gone(str(error)) from None
        raise Gone(f"it ended before it answered {command!r}")


def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise Refused(answer["error"], answer["message"], tuple(answer.get("log", ())))
    return answer
