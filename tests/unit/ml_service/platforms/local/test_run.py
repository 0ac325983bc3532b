"""A request to end a local run: where it may arrive, and where it has to wait."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from ml_service.platforms.local.run import Request, Terminated


@pytest.fixture
def request_to_end() -> Iterator[Request]:
    """A request that SIGTERM makes of this very process."""
    made = Request()
    before = signal.signal(signal.SIGTERM, made.arrive)
    yield made
    signal.signal(signal.SIGTERM, before)


def test_a_request_is_raised_where_the_run_is(request_to_end: Request) -> None:
    """So that whatever goes on is left, and its clean-up happens."""
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)


def test_a_request_waits_while_a_process_is_started(request_to_end: Request) -> None:
    """Raised in between, nobody would know the process; raised afterwards, it is stopped like any other."""
    known = []
    with pytest.raises(Terminated):
        with request_to_end.held_back():
            signal.raise_signal(signal.SIGTERM)
            known.append("process")
    assert known == ["process"]


def test_a_second_request_does_not_interrupt_the_record_of_the_first(request_to_end: Request) -> None:
    """Once a run is ending, it ends in its own way."""
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
