"""Short requests are scored in the event loop, long ones in the thread. Both decisions can change."""

from __future__ import annotations

from scoring_service.latency import LatencyEstimate


def test_the_unknown_counts_as_long() -> None:
    """Until a first request has been timed in the thread."""
    estimate = LatencyEstimate()
    assert not estimate.is_short(100)
    estimate.add_thread_sample(100, 0.00002)
    assert estimate.is_short(100)
    assert not estimate.is_short(100_000)


def test_a_busy_machine_does_not_make_requests_long() -> None:
    """Now and then one waits for the processor for 100 ms."""
    estimate = LatencyEstimate()
    estimate.add_thread_sample(100, 0.00002)
    for _ in range(1000):
        for _ in range(4):
            estimate.add_loop_sample(100, 0.1)
        estimate.add_loop_sample(100, 0.00002)
        assert estimate.is_short(100)


def test_a_model_that_has_become_slow_leaves_the_loop_after_five_requests_and_can_come_back() -> None:
    """The thread's own time decides when it is short again."""
    estimate = LatencyEstimate()
    estimate.add_thread_sample(100, 0.00002)
    for _ in range(5):
        assert estimate.is_short(100)
        estimate.add_loop_sample(100, 0.1)
    assert not estimate.is_short(100)
    for _ in range(30):
        estimate.add_thread_sample(100, 0.00002)
    assert estimate.is_short(100)
