"""The gate on plain numbers: when a candidate is better, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest

from diabetes_regression import gate
from diabetes_regression.data import Values

LOWER = gate.Rule("mse", "lower")


def models(candidate_error: float, champion_error: float, rows: int = 100) -> tuple[Values, Values, Values]:
    """The truth and two models' predictions that are off by a constant."""
    truth = np.linspace(0, 1, rows)
    return truth, truth + candidate_error, truth - champion_error


def test_a_better_candidate_is_accepted() -> None:
    """Scores are those of the rows given; the improvement is positive when better."""
    verdict = gate.compare(LOWER, *models(1.0, 2.0), rows_left_out=7)
    assert (verdict.accept, verdict.rows, verdict.rows_left_out) == (True, 100, 7)
    assert (verdict.candidate, verdict.champion, verdict.improvement) == pytest.approx((1.0, 4.0, 3.0))
    assert verdict.reason == "better: mse is 3 better than the champion's"


def test_a_worse_candidate_is_rejected() -> None:
    """The reason gives the difference and what would have been needed."""
    verdict = gate.compare(LOWER, *models(2.0, 1.0), rows_left_out=0)
    assert not verdict.accept
    assert verdict.reason == "not better: mse is 3 worse than the champion's, where it must be better by more than 0"


def test_an_equal_candidate_is_rejected() -> None:
    """Not better is not better."""
    verdict = gate.compare(LOWER, *models(1.0, 1.0), rows_left_out=0)
    assert (verdict.accept, verdict.improvement) == (False, 0.0)
    assert verdict.reason.startswith("not better: mse equals the champion's")


def test_a_difference_of_rounding_is_no_improvement() -> None:
    """The same recipe trained on another processor differs in the last bits."""
    assert not gate.compare(LOWER, *models(1.0, 1.0 + 1e-12), rows_left_out=0).accept
    assert gate.compare(LOWER, *models(1.0, 1.0 + 1e-6), rows_left_out=0).accept


@pytest.mark.parametrize(("least", "accept"), [(2.9, True), (3.1, False)])
def test_the_improvement_must_exceed_the_threshold(least: float, accept: bool) -> None:
    """min_improvement is in units of the metric."""
    rule = gate.Rule("mse", "lower", min_improvement=least)
    assert gate.compare(rule, *models(1.0, 2.0), rows_left_out=0).accept == accept


def test_where_higher_is_better_the_higher_score_wins() -> None:
    """The direction comes from the project, not from the name of the metric."""
    rule = gate.Rule("r2", "higher")
    assert gate.compare(rule, *models(0.1, 0.2), rows_left_out=0).accept
    assert not gate.compare(rule, *models(0.2, 0.1), rows_left_out=0).accept
    assert gate.compare(gate.Rule("mse", "higher"), *models(2.0, 1.0), rows_left_out=0).accept


def noisy() -> tuple[Values, Values, Values]:
    """A candidate that is a little better by the luck of a few rows."""
    generator = np.random.default_rng(3)
    truth = generator.normal(size=100)
    candidate, champion = (truth + generator.normal(size=100) for _ in range(2))
    better, worse = sorted((candidate, champion), key=lambda predicted: float(np.mean((truth - predicted) ** 2)))
    return truth, better, worse


def test_chance_decides_only_where_it_is_asked() -> None:
    """The bootstrap is always reported; with require_significant an improvement that it doubts is rejected."""
    plain = gate.compare(LOWER, *noisy(), rows_left_out=0)
    strict = gate.compare(gate.Rule("mse", "lower", require_significant=True), *noisy(), rows_left_out=0)
    assert plain.accept and not strict.accept
    assert plain.bootstrap == strict.bootstrap
    assert plain.bootstrap is not None and not plain.bootstrap.significant
    assert strict.reason.startswith("better, but not significantly: ")


def test_a_sure_improvement_passes_the_strict_gate() -> None:
    """Every resample of the rows agrees."""
    verdict = gate.compare(gate.Rule("mse", "lower", require_significant=True), *models(1.0, 2.0), rows_left_out=0)
    assert verdict.accept
    assert verdict.bootstrap is not None and verdict.bootstrap.significant
    assert (verdict.bootstrap.draws, verdict.bootstrap.share_better) == (2000, 1.0)


def test_the_bootstrap_is_paired_and_repeatable() -> None:
    """Two models with the same large errors differ surely by a small constant: unpaired draws would not see it."""
    generator = np.random.default_rng(0)
    truth, error = np.zeros(60), np.abs(generator.normal(size=60)) * 100
    first, second = (gate.resample(LOWER, truth, error, error + 0.01) for _ in range(2))
    assert first == second
    assert first.significant


def test_the_bootstrap_encloses_the_difference_at_the_rate_it_says() -> None:
    """Over many samples, about 95 of 100 intervals hold the true improvement, which is 0 here."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        truth, candidate, champion = generator.normal(size=(3, 80))
        bootstrap = gate.resample(LOWER, truth, candidate, champion)
        held += bootstrap.low <= 0 <= bootstrap.high
    assert 88 <= held <= 99


def test_many_rows_are_drawn_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and the batches do not change the result."""
    whole = gate.resample(LOWER, *noisy())
    monkeypatch.setattr(gate, "RESAMPLED_VALUES", 300)
    assert gate.resample(LOWER, *noisy()) == whole


def test_under_thirty_rows_nothing_is_compared() -> None:
    """The error counts the rows that are left and those left out."""
    with pytest.raises(
        gate.TooFewRowsError, match=r"29 held-out rows are new to both models \(60 trained one of them\)"
    ):
        gate.compare(LOWER, *models(1.0, 2.0, rows=29), rows_left_out=60)
    assert gate.compare(LOWER, *models(1.0, 2.0, rows=30), rows_left_out=60).accept


def test_rows_that_trained_either_model_are_told_apart() -> None:
    """New is what neither list holds."""
    assert gate.rows_new_to(["a", "b", "c"], {"a"}, {"c", "d"}).tolist() == [False, True, False]
    assert gate.rows_new_to([], {"a"}).tolist() == []


def test_the_metrics_are_those_of_scikit_learn() -> None:
    """Also over many resamples at once."""
    from sklearn import metrics

    truth, predicted = np.random.default_rng(0).normal(size=(2, 5, 40))
    known = {"mse": metrics.mean_squared_error, "mae": metrics.mean_absolute_error, "r2": metrics.r2_score}
    for name, expected in known.items():
        scores = gate.METRICS[name](truth, predicted)
        assert scores.tolist() == pytest.approx([expected(*pair) for pair in zip(truth, predicted, strict=True)])
