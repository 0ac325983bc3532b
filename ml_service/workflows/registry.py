"""Find registered model versions, and withdraw one."""

from __future__ import annotations

from ml_service.config import Settings, is_plain
from ml_service.console import Console
from ml_service.errors import (
    UsageError,
)
from ml_service.ports import (
    ModelVersion,
    Platform,
)
from ml_service.workflows.training import model_name


def withdraw(settings: Settings, platform: Platform, console: Console, *, reference: str, reason: str) -> None:
    """Take a version out of use for good.

    Raises:
        UsageError: the reason is empty, or there is no such version.
    """
    if not reason.strip():
        raise UsageError(
            "a reason is needed: it is kept with the version", where="--reason", next_step='add --reason "TEXT"'
        )
    version = find_version(settings, platform, reference)
    champion = platform.withdraw(version, reason)
    console.line(f"{version.reference} is withdrawn: {reason}")
    console.line(f"champion: {champion.reference if champion else 'none'}")
    console.line("what serves is unchanged: see inv status, and inv rollback or inv redeploy")


def find_version(settings: Settings, platform: Platform, reference: str) -> ModelVersion:
    """Return the version that ``champion`` or ``NAME:VERSION`` names.

    Raises:
        UsageError: there is none, or ``reference`` is neither.
    """
    if reference == "champion":
        champion = platform.champion(model_name(settings))
        if not champion:
            raise UsageError("there is no champion yet", where="--model", next_step="train one: inv publish train")
        return champion
    name, separator, number = reference.rpartition(":")
    if not separator or not is_plain(name) or not number.isdecimal():
        raise UsageError(f"invalid model {reference!r}", where="--model", next_step="use NAME:VERSION or champion")
    return platform.version(name, number)
