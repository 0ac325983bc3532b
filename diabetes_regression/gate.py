"""The gate: is the candidate better than the champion, on rows that neither has been trained on?

Arrays in, a verdict out: no files and no models, so that the same functions decide in ``evaluate`` and in the
simulation that the tests run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diabetes_regression.data import Values

MIN_ROWS = 30
"""With fewer rows new to both models, chance decides more than the models do."""

BOOTSTRAP_DRAWS = 2_000
BOOTSTRAP_SEED = 0
RESAMPLED_VALUES = 1_000_000
"""How many resampled values are held at once: memory stays the same however many rows are held out."""

ROUNDING = 1e-9
"""A relative difference below this is rounding: the same recipe, trained on another machine, is not better."""


def mean_squared_error(truth: Values, predicted: Values) -> Values:
    """Over the last axis, in squared units of the target; ``[…, rows]`` to ``[…]``."""
    return np.asarray(np.mean((truth - predicted) ** 2, axis=-1))


def mean_absolute_error(truth: Values, predicted: Values) -> Values:
    """Over the last axis, in units of the target; ``[…, rows]`` to ``[…]``."""
    return np.asarray(np.mean(np.abs(truth - predicted), axis=-1))


def r2_score(truth: Values, predicted: Values) -> Values:
    """Return the share of the variance explained, over the last axis; ``[…, rows]`` to ``[…]``; 1 is perfect."""
    spread = np.sum((truth - truth.mean(axis=-1, keepdims=True)) ** 2, axis=-1)
    return np.asarray(1 - np.sum((truth - predicted) ** 2, axis=-1) / spread)


METRICS: Mapping[str, Callable[[Values, Values], Values]] = {
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
    "r2": r2_score,
}


@dataclass(frozen=True)
class Rule:
    """Decides whether a candidate is better: metric, good direction (``lower`` or ``higher``) and thresholds."""

    metric: str
    direction: str
    min_improvement: float = 0.0
    require_significant: bool = False

    def score(self, truth: Values, predicted: Values) -> Values:
        """Return the metric over the last axis."""
        return METRICS[self.metric](truth, predicted)

    def improvement(self, candidate: Values, champion: Values) -> Values:
        """Return by how much the candidate's score is better: positive is better, whatever the direction."""
        return champion - candidate if self.direction == "lower" else candidate - champion


@dataclass(frozen=True)
class Bootstrap:
    """How sure the improvement is: resampled rows, the same for both models.

    ``low`` and ``high`` enclose 95 % of the improvements drawn; ``share_better`` of them exceed ``min_improvement``;
    ``significant`` says that the whole interval does.
    """

    draws: int
    seed: int
    low: float
    high: float
    share_better: float
    significant: bool


@dataclass(frozen=True)
class Verdict:
    """Accept or reject, and why. ``candidate`` and ``champion`` are their scores on ``rows`` rows."""

    accept: bool
    reason: str
    candidate: float
    champion: float | None
    improvement: float | None
    rows: int
    rows_left_out: int
    bootstrap: Bootstrap | None


class TooFewRowsError(ValueError):
    """Fewer than ``MIN_ROWS`` rows are new to both models."""


def rows_new_to(hashes: Sequence[str], *trained: Collection[str]) -> NDArray[np.bool_]:
    """Which of the rows (``[rows]`` hashes) none of the ``trained`` collections holds: ``[rows]``."""
    return np.array([not any(row in rows for rows in trained) for row in hashes], dtype=np.bool_)


def first_of_its_name(rule: Rule, truth: Values, candidate: Values, rows_left_out: int) -> Verdict:
    """Return the verdict where there is no champion: accepted, whatever the score."""
    score = float(rule.score(truth, candidate))
    return Verdict(True, "first of its name", score, None, None, len(truth), rows_left_out, None)


def compare(rule: Rule, truth: Values, candidate: Values, champion: Values, rows_left_out: int) -> Verdict:
    """Return the verdict over two models' predictions (``[rows]`` each) of the ``truth`` of rows new to both.

    Raises:
        TooFewRowsError: the rows are too few to tell.
    """
    if len(truth) < MIN_ROWS:
        raise TooFewRowsError(
            f"{len(truth)} held-out rows are new to both models ({rows_left_out} trained one of them); "
            f"at least {MIN_ROWS} are needed"
        )
    scores = rule.score(truth, candidate), rule.score(truth, champion)
    improvement = float(rule.improvement(*scores))
    bootstrap = resample(rule, truth, candidate, champion)
    better = improvement > max(rule.min_improvement, ROUNDING * abs(float(scores[1])))
    accept = better and (bootstrap.significant or not rule.require_significant)
    reason = _reason(rule, improvement, better, accept)
    return Verdict(
        accept, reason, float(scores[0]), float(scores[1]), improvement, len(truth), rows_left_out, bootstrap
    )


def _reason(rule: Rule, improvement: float, better: bool, accept: bool) -> str:
    change = f"{rule.metric} is {abs(improvement):.6g} {'better' if improvement > 0 else 'worse'} than the champion's"
    if improvement == 0:
        change = f"{rule.metric} equals the champion's"
    if not better:
        return f"not better: {change}, where it must be better by more than {rule.min_improvement:g}"
    if not accept:
        return f"better, but not significantly: {change}, and resampled rows do not confirm it"
    return f"better: {change}"


def resample(rule: Rule, truth: Values, candidate: Values, champion: Values) -> Bootstrap:
    """The paired bootstrap: the improvement on ``BOOTSTRAP_DRAWS`` resamples of the rows, with a fixed seed."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    at_once = max(1, RESAMPLED_VALUES // len(truth))
    improvements = np.concatenate(
        [
            _improvements(rule, generator.integers(len(truth), size=(count, len(truth))), truth, candidate, champion)
            for count in _batches(BOOTSTRAP_DRAWS, at_once)
        ]
    )
    low, high = (float(bound) for bound in np.quantile(improvements, (0.025, 0.975)))
    share = float(np.mean(improvements > rule.min_improvement))
    return Bootstrap(BOOTSTRAP_DRAWS, BOOTSTRAP_SEED, low, high, share, low > rule.min_improvement)


def _improvements(rule: Rule, draws: NDArray[np.int_], truth: Values, candidate: Values, champion: Values) -> Values:
    drawn = truth[draws]
    return rule.improvement(rule.score(drawn, candidate[draws]), rule.score(drawn, champion[draws]))


def _batches(total: int, at_once: int) -> list[int]:
    return [min(at_once, total - start) for start in range(0, total, at_once)]
