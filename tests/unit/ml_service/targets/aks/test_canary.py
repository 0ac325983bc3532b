"""The arithmetic of a canary: which share replicas reach, and what metrics say about two versions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.stats import fisher_exact

from ml_service.config import AksSettings
from ml_service.errors import UsageError
from ml_service.targets.aks.canary import Share, share
from ml_service.targets.aks.canary_metrics import Traffic, _p_value, parse, verdict

EXPOSITION = """
# HELP scoring_requests_total Requests answered, by route and status.
scoring_requests_total{route="score",status="200"} 90
scoring_requests_total{route="score",status="400"} 6
scoring_requests_total{route="score",status="500"} 3
scoring_requests_total{route="score",status="503"} 1
scoring_requests_total{route="live",status="200"} 1000
scoring_request_duration_seconds_bucket{le="0.001"} 50
scoring_request_duration_seconds_bucket{le="0.01"} 90
scoring_request_duration_seconds_bucket{le="+Inf"} 100
"""


def traffic(requests: int, failures: int = 0, fast: float = 0.99) -> Traffic:
    """``fast`` of the requests took at most 1 ms, the others at most 10 ms."""
    return Traffic(requests, failures, {0.001: fast * requests, 0.01: requests, float("inf"): requests})


@pytest.mark.parametrize(
    ("percent", "most", "expected"),
    [(50, 10, Share(1, 1)), (25, 10, Share(3, 1)), (10, 10, Share(8, 1)), (20, 10, Share(4, 1)), (80, 10, Share(1, 4))],
)
def test_the_fewest_pods_that_come_near_the_share(percent: int, most: int, expected: Share) -> None:
    """Two points of difference are not worth another pod."""
    assert share(percent, AksSettings(max_replicas=most)) == expected


def test_a_share_that_is_missed_by_more_than_five_points_is_refused() -> None:
    """With three pods 10 % cannot be had; the message says what can."""
    with pytest.raises(UsageError, match=r"nearest to 10 % is 33\.3 %"):
        share(10, AksSettings(max_replicas=3))


def test_no_share_is_off_by_more_than_five_points() -> None:
    """Whatever is asked for is reached within the tolerance, or refused."""
    for percent in range(1, 100):
        for most in range(2, 12):
            try:
                found = share(percent, AksSettings(max_replicas=most))
            except UsageError:
                continue
            assert abs(found.percent - percent) <= 5
            assert found.total <= most


@pytest.mark.parametrize("percent", [-1, 0, 100, 1000])
def test_what_is_no_share_is_refused(percent: int) -> None:
    """A canary leaves both versions some traffic."""
    with pytest.raises(UsageError, match="from 1 to 99"):
        share(percent, AksSettings())


def test_one_pod_leaves_no_room_for_a_canary() -> None:
    """The message names the setting."""
    with pytest.raises(UsageError, match="AKS_MAX_REPLICAS=1"):
        share(50, AksSettings(max_replicas=1))


def test_metrics_are_read_as_prometheus_writes_them() -> None:
    """Scoring requests only; 5xx are failures, a client's mistakes are not."""
    found = parse(EXPOSITION)
    assert (found.requests, found.failures) == (94, 4)
    assert found.buckets == {0.001: 50, 0.01: 90, float("inf"): 100}


def test_a_quantile_is_estimated_inside_its_bucket() -> None:
    """Half of the requests took up to 1 ms; the slowest are known only to exceed 10 ms."""
    found = parse(EXPOSITION)
    assert found.quantile(0.5) == pytest.approx(0.001)
    assert found.quantile(0.7) == pytest.approx(0.001 + 0.5 * 0.009)
    assert found.quantile(0.95) == 0.01


def test_what_was_counted_before_is_taken_away() -> None:
    """Only what came during the canary is compared."""
    found = traffic(300, 30) - traffic(100, 10)
    assert (found.requests, found.failures, found.buckets[0.01]) == (200, 20, 200)


def test_a_pod_that_was_started_again_counts_from_the_beginning() -> None:
    """Less than before: all that it has counted came since."""
    assert traffic(20) - traffic(100, 10) == traffic(20)


def test_too_few_requests_are_undecided() -> None:
    """To either version."""
    assert verdict(traffic(10_000), traffic(499), 500)[0] is None
    assert verdict(traffic(499), traffic(10_000), 500)[0] is None


def test_the_same_is_accepted() -> None:
    """Also with the same few failures."""
    assert verdict(traffic(9000, 9), traffic(1000, 1), 500)[0] is True


def test_more_failures_are_refused() -> None:
    """More than chance explains."""
    accepted, why = verdict(traffic(9000, 9), traffic(1000, 20), 500)
    assert accepted is False
    assert "fails more often: 20 against 9 failures" in why


def test_chance_is_not_held_against_a_candidate() -> None:
    """Two failures of 1,000 against one in 1,000 say nothing; nor does the one failure of a canary with a tenth."""
    assert verdict(traffic(9000, 9), traffic(1000, 2), 500)[0] is True
    assert verdict(traffic(4500, 0), traffic(500, 1), 500)[0] is True


@pytest.mark.parametrize("counts", [(0, 4500, 1, 500), (1, 4500, 2, 500), (5, 530, 4, 74), (0, 5, 5, 5), (7, 7, 3, 3)])
def test_chance_is_what_statisticians_say_it_is(counts: tuple[int, int, int, int]) -> None:
    """Fisher's exact test."""
    usual, first, seen, second = counts
    expected = fisher_exact([[seen, second - seen], [usual, first - usual]], alternative="greater").pvalue
    assert _p_value(*counts) == pytest.approx(expected)


def test_who_has_scored_nothing_is_undecided() -> None:
    """What is refused for its head alone, such as a request without a key, is neither counted nor timed."""
    unused = Traffic(0, 0, {0.001: 0, 0.01: 0, float("inf"): 0})
    assert verdict(traffic(9000), unused, 500)[0] is None
    assert verdict(traffic(9000), replace(unused, requests=600), 500)[0] is None


def test_versions_that_count_at_other_bounds_are_compared_where_both_do() -> None:
    """The scoring code, and with it the buckets, comes with the version."""
    other = Traffic(1000, 0, {0.002: 100, 0.01: 500, 0.02: 1000, float("inf"): 1000})
    assert verdict(traffic(9000), other, 500)[0] is False


def test_a_slower_candidate_is_refused() -> None:
    """Its 95th percentile is more than 1.5 times the other one."""
    accepted, why = verdict(traffic(9000, fast=0.99), traffic(1000, fast=0.50), 500)
    assert accepted is False
    assert "slower" in why


def test_a_few_requests_that_had_to_wait_make_no_candidate_slow() -> None:
    """Four of 74 in the next bucket move the 95th percentile from 1.4 ms to 2.7 ms: chance, as far as one can tell. The
    same shares of 5,000 requests are none."""

    def seen(requests: int, slow: float) -> Traffic:
        bounds = {0.001: 0.94 * requests, 0.0025: (1 - slow) * requests, 0.005: requests, float("inf"): requests}
        return Traffic(requests, 0, bounds)

    assert verdict(seen(530, 0.02), seen(74, 0.055), 20)[0] is True
    assert verdict(seen(5300, 0.02), seen(5000, 0.055), 20)[0] is False


def test_a_faster_candidate_is_accepted() -> None:
    """Better is no reason to refuse."""
    assert verdict(traffic(9000, 90, fast=0.5), traffic(1000, fast=0.99), 500)[0] is True
