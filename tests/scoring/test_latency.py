"""Short requests stay in the event loop, long ones go to the thread, and neither decision is for ever."""

from __future__ import annotations

from scoring_service.latency import Pace


def test_the_unknown_counts_as_long() -> None:
    """Until a first request has been timed in the thread."""
    pace = Pace()
    assert not pace.is_short(100)
    pace.saw_in_thread(100, 0.00002)
    assert pace.is_short(100)
    assert not pace.is_short(100_000)


def test_a_busy_machine_does_not_make_requests_long() -> None:
    """Now and then one waits for the processor for 100 ms."""
    pace = Pace()
    pace.saw_in_thread(100, 0.00002)
    for _ in range(1000):
        for _ in range(4):
            pace.saw_in_loop(100, 0.1)
        pace.saw_in_loop(100, 0.00002)
        assert pace.is_short(100)


def test_a_model_that_has_become_slow_leaves_the_loop_after_five_requests_and_can_come_back() -> None:
    """The thread's own time decides when it is short again."""
    pace = Pace()
    pace.saw_in_thread(100, 0.00002)
    for _ in range(5):
        assert pace.is_short(100)
        pace.saw_in_loop(100, 0.1)
    assert not pace.is_short(100)
    for _ in range(30):
        pace.saw_in_thread(100, 0.00002)
    assert pace.is_short(100)
