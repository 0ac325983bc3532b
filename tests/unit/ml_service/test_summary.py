"""The run's page: verdict, metrics, plots, and no markup of strangers."""

from __future__ import annotations

import base64
from typing import Any

from ml_service.ports import Build, ModelVersion, Run, RunStatus
from ml_service.summary import training_summary

NOT = "Model was not registered for this run."
BETTER: dict[str, Any] = {
    "accept": True,
    "reason": "better: mse is 12 better",
    "metric": "mse",
    "direction": "lower",
    "candidate": 3000.0,
    "champion": 3012.0,
    "improvement": 12.0,
    "rows": 89,
    "rows_left_out": 0,
    "bootstrap": {"draws": 2000, "low": -4.0, "high": 28.0},
}


def run(status: RunStatus, verdict: dict[str, Any]) -> Run:
    """A run with a verdict."""
    return Run("r1", "p1", Build("7"), status, verdict=verdict)


def version(metrics: dict[str, float], name: str = "diabetes") -> ModelVersion:
    """A registered version."""
    return ModelVersion("id", name, "3", "2026-01-01T00:00:00+00:00", {}, metrics, {})


def test_a_registered_model_shows_its_metrics_verdict_and_plots() -> None:
    """Everything that a person asks first, on one page."""
    svg = "<svg>å</svg>"
    page = training_summary(run(RunStatus.COMPLETED, BETTER), version({"mse": 3000.0}), {"residuals.svg": svg}, NOT)
    assert page.startswith("# Model diabetes:3 was registered for this run.\n")
    assert "## Verdict: accepted" in page
    assert "| mse | 3000 |" in page
    assert "| champion | 3012 |" in page
    assert f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}" in page


def test_the_interval_is_drawn_as_text() -> None:
    """From -4 to 28: nothing to the left of the low end, zero at an eighth of the line."""
    page = training_summary(run(RunStatus.COMPLETED, BETTER), None, {}, NOT)
    (line,) = [line for line in page.splitlines() if line.startswith("┣")]
    assert (line.index("┣"), line.index("0"), line.index("┫")) == (0, 6, 47)
    assert "-4 to 28" in page


def test_a_rejected_candidate_is_said_in_the_words_of_the_guide() -> None:
    """No metrics of a version that does not exist."""
    page = training_summary(run(RunStatus.CANCELED, {**BETTER, "accept": False, "bootstrap": None}), None, {}, NOT)
    assert page.startswith(f"# {NOT}\n")
    assert "## Verdict: rejected" in page
    assert "## Metrics" not in page
    assert "```" not in page


def test_a_run_without_verdict_or_with_a_strange_one_still_has_a_page() -> None:
    """RUN_EVALUATION=false leaves most of it out; another project may write something else."""
    assert "Run r1" in training_summary(run(RunStatus.COMPLETED, {}), None, {}, NOT)
    for bootstrap in ({}, {"low": "x", "high": 1}, {"low": 0.0, "high": 0.0}, [1], {"low": float("nan"), "high": 1.0}):
        page = training_summary(run(RunStatus.COMPLETED, {**BETTER, "bootstrap": bootstrap}), None, {}, NOT)
        assert "## Verdict" in page


def test_foreign_names_are_no_markup() -> None:
    """A metric's name can neither make a column, nor a link, nor HTML, nor a command."""
    evil = "a|b<script>[x](http://e)`##vso[task.complete]\n# head"
    strange = run(RunStatus.COMPLETED, {**BETTER, "reason": evil})
    page = training_summary(strange, version({evil: 1.0}, evil), {evil: ""}, NOT)
    assert "<script>" not in page.replace("\\<script\\>", "")
    assert "##vso[" not in page
    assert not any(line.startswith("# head") for line in page.splitlines())
    (row,) = [line for line in page.splitlines() if line.endswith("| 1 |")]
    assert row.replace("\\|", "").count("|") == 3
