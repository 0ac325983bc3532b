"""Carrying out a plan: exactly its steps, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_service.common.plan import due_steps, is_due, perform
from ml_service.errors import UnavailableError
from ml_service.ports import Action, Plan, Release, Step

RELEASE = Release(Path("package"), "0" * 64, "toy", "1", "b1")
STEPS = (Step(Action.START, "toy 1", detail=object()), Step(Action.SWITCH, "the traffic"))


def test_each_step_is_performed_once_and_in_order() -> None:
    """By the function for its action, which gets the step."""
    performed: list[Step] = []
    perform(STEPS, {Action.START: performed.append, Action.SWITCH: performed.append})
    assert performed == list(STEPS)


def test_a_step_that_nobody_can_perform_ends_the_plan() -> None:
    """It is a mistake in the target, and nothing after it is performed."""
    performed: list[Step] = []
    with pytest.raises(KeyError):
        perform(STEPS, {Action.SWITCH: performed.append})
    assert performed == []


def test_a_plan_is_due_while_the_same_steps_are_needed() -> None:
    """What a step carries for the target is no part of the comparison: it is made anew with each plan."""
    now = [Step(Action.START, "toy 1", detail=object()), Step(Action.SWITCH, "the traffic")]
    assert is_due(Plan("toy", RELEASE, STEPS), now, lambda line: None)


def test_a_plan_is_not_due_when_another_deployment_did_the_same() -> None:
    """The person who waits is told."""
    lines: list[str] = []
    assert not is_due(Plan("toy", RELEASE, STEPS), [], lines.append)
    assert lines == ["another deployment has brought up the same version meanwhile"]


def test_a_plan_that_no_longer_fits_is_refused() -> None:
    """Nobody has seen the steps that would be needed now."""
    with pytest.raises(UnavailableError, match="changed what serves since this one was planned"):
        is_due(Plan("toy", RELEASE, STEPS), [Step(Action.START, "toy 1")], lambda line: None)


def test_steps_that_have_become_needless_are_not_due() -> None:
    """The others are performed, with what was planned for them now."""
    now = [Step(Action.SWITCH, "the traffic", "another difference", detail=object())]
    assert due_steps(Plan("toy", RELEASE, STEPS), now, lambda line: None) is now


def test_when_no_step_is_left_the_person_who_waits_is_told() -> None:
    """Something has been done meanwhile, by another deployment or by the target itself."""
    lines: list[str] = []
    assert due_steps(Plan("toy", RELEASE, STEPS), [], lines.append) == []
    assert lines == ["nothing is left to change: what was planned has been done meanwhile"]


def test_a_step_that_was_not_planned_refuses_the_plan() -> None:
    """Another action, or another subject."""
    for step in (Step(Action.STOP, "toy 1"), Step(Action.START, "toy 2")):
        with pytest.raises(UnavailableError, match="changed what serves since this one was planned"):
            due_steps(Plan("toy", RELEASE, STEPS), [*STEPS, step], lambda line: None)
