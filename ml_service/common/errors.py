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


def not_pushed(who: str) -> UsageError:
    """Return the error of an image that is only on this machine; ``who`` pulls it, such as ``a cluster``."""
    return UsageError(
        f"the artifact has no pushed image, and {who} gets its images from a registry",
        where="image.json",
        next_step="run: inv build-image --push",
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
    return UnhealthyError(with_log(reason, log_lines), where=f"target {target}", next_step=next_step)


def with_log(reason: str, log_lines: Sequence[str]) -> str:
    """Return the reason and, below it, the last log lines."""
    shown = "".join(f"\n  | {line}" for line in log_lines[-LOG_LINES:]) or " none"
    return f"{reason}\nlast log lines:{shown}"
