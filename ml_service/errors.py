"""The one family of errors. A task catches it once and ends with the exit code of its kind."""

from __future__ import annotations

INSTALL = "run: python3.11 requirements/sync.py .venv-all requirements/all.txt, then use .venv-all/bin/inv"
"""The next step where the library of an adapter is missing: an environment with all of them."""


class MlopsError(Exception):
    """Something that the person running a task can act on.

    ``what`` says what went wrong and why, ``where`` names the file, setting or resource, ``next_step`` is the command
    or change that helps. None of them may hold a secret: they are printed and end up in CI logs.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.next_step:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)


class UsageError(MlopsError):
    """A command was given something that it does not know: an option, project, platform, target, build or model."""

    exit_code = 2


class DataError(MlopsError):
    """The data, or a step of the project working on it, was rejected."""

    exit_code = 3


class ConfigurationError(MlopsError):
    """A setting is missing or wrong, or an SDK is not installed."""

    exit_code = 4


class UnavailableError(MlopsError):
    """A service, engine, store, disk or port could not be reached, or refused."""

    exit_code = 5


class UnhealthyError(MlopsError):
    """A deployment did not come up or failed its smoke test; the version before it serves."""

    exit_code = 6


class NotRegisteredError(MlopsError):
    """The build registered no model, and one was required."""

    exit_code = 7


class IntegrityError(MlopsError):
    """Content is not what its hash or signature says."""

    exit_code = 8


BY_EXIT_CODE: dict[int, type[MlopsError]] = {
    kind.exit_code: kind
    for kind in (UsageError, DataError, ConfigurationError, UnavailableError, UnhealthyError, IntegrityError)
}
"""The kind of the error with which a step or a run of another process ended."""
