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
    raise _changed(plan)


def due_steps(plan: Plan, steps_now: Sequence[Step], progress: Progress) -> Sequence[Step]:
    """Return the steps of the plan that are still to be performed, for a target that changes by itself as well.

    The same as ``is_due`` with two differences. Steps are compared by their words alone, as a difference that is shown
    (``diff``) may hold numbers of the moment. And steps that are not needed any more are left out.

    Raises:
        UnavailableError: a step that the plan does not have would be needed by now.
    """
    words = [_words(step) for step in plan.steps]
    if any(_words(step) not in words for step in steps_now):
        raise _changed(plan)
    if not steps_now:
        progress("nothing is left to change: what was planned has been done meanwhile")
    return steps_now


def _words(step: Step) -> tuple[Action, str]:
    return step.action, step.subject


def _changed(plan: Plan) -> UnavailableError:
    return UnavailableError(
        "another deployment changed what serves since this one was planned",
        where=f"target {plan.target}",
        next_step=f"see inv status --target {plan.target}, and run the command again",
    )


def perform(steps: Sequence[Step], performers: Mapping[Action, Callable[[Step], None]]) -> None:
    """Perform each step by the function that ``performers`` has for its action."""
    for step in steps:
        performers[step.action](step)
