"""Errors that every target raises in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from ml_service.errors import UnhealthyError, UsageError

LOG_LINES = 15
"""How many of the candidate's last log lines an error shows."""


def nothing_deployed(target: str) -> UsageError:
    """Return the error of a command that needs a deployment where there is none."""
    return UsageError("nothing is deployed", where=f"target {target}", next_step=f"run: inv deploy --target {target}")


def no_previous_version(target: str) -> UsageError:
    """Return the error of a rollback where no version served before."""
    return UsageError(
        "there is no version before to go back to",
        where=f"target {target}",
        next_step=f"see: inv status --target {target}",
    )


def no_canary(target: str, where: str) -> UsageError:
    """Return the error of a canary on a target that serves one version; ``where`` is the option or task."""
    return UsageError(
        f"the target {target} serves one version at a time and has no canary",
        where=where,
        next_step="use it with --target aks",
    )


def unhealthy(target: str, reason: str, log_lines: Sequence[str], next_step: str) -> UnhealthyError:
    """Return the error of a candidate that did not come up or did not pass, with its last log lines."""
    shown = "".join(f"\n  | {line}" for line in log_lines[-LOG_LINES:]) or " none"
    return UnhealthyError(f"{reason}\nlast log lines:{shown}", where=f"target {target}", next_step=next_step)
