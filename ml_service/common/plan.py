"""Carry out a plan: exactly its steps, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ml_service.errors import UnavailableError
from ml_service.ports import Action, Plan, Progress, Step


def is_due(plan: Plan, steps_now: Sequence[Step], progress: Progress) -> bool:
    """Return whether the plan's steps are still to be performed.

    Time goes by between planning and performing, so another deployment may have come in between. Call this with the
    target's lock held; ``steps_now`` is what would be planned at this moment.

    Raises:
        UnavailableError: other steps would be needed by now; the plan that was shown is not performed.
    """
    if list(steps_now) == list(plan.steps):
        return True
    if not steps_now:
        progress("another deployment has brought up the same version meanwhile")
        return False
    raise UnavailableError(
        "another deployment changed what serves since this one was planned",
        where=f"target {plan.target}",
        next_step=f"see inv status --target {plan.target}, and run the command again",
    )


def perform(steps: Sequence[Step], performers: Mapping[Action, Callable[[Step], None]]) -> None:
    """Perform each step by the function that ``performers`` has for its action."""
    for step in steps:
        performers[step.action](step)
