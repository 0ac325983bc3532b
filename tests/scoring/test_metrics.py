"""Numbers are summed over the workers, in Prometheus' text format."""

from __future__ import annotations

import re
from pathlib import Path

from scoring_service.metrics import CODES, STATUSES, SharedMetrics

LABEL = r'[a-z0-9_]+="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"([a-z_]+)(\{{{LABEL}(?:,{LABEL})*\}})? ([0-9.e+-]+)")

SCORING = Path(__file__).resolve().parents[2] / "scoring"


def parse(text: str) -> dict[str, float]:
    """Every sample; each must have the form of the format, and a type given before it."""
    samples, typed = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in typed or re.sub("_(bucket|sum|count)$", "", match[1]) in typed
            samples[line.rpartition(" ")[0]] = float(match[3])
    return samples


def test_the_exposition_is_prometheus_text_summed_over_workers() -> None:
    """Requests by route and status, errors by code, rows, and a cumulative histogram."""
    shared = SharedMetrics(3)
    for worker in shared.workers:
        worker.answered("score", 200)
        worker.scored(0.002, 10)
        worker.set("ready", 1)
    shared.workers[0].answered("score", 400)
    shared.workers[0].failed("wrong_type")
    text = shared.exposition('na"me', "3", "abc").decode()
    samples = parse(text)
    assert samples['scoring_requests_total{route="score",status="200"}'] == 3
    assert samples['scoring_requests_total{route="score",status="400"}'] == 1
    assert samples['scoring_errors_total{code="wrong_type"}'] == 1
    assert samples["scoring_rows_total"] == 30
    assert samples['scoring_request_duration_seconds_bucket{le="0.001"}'] == 0
    assert samples['scoring_request_duration_seconds_bucket{le="0.0025"}'] == 3
    assert samples['scoring_request_duration_seconds_bucket{le="+Inf"}'] == 3
    assert samples["scoring_request_duration_seconds_count"] == 3
    assert samples["scoring_workers_ready"] == 3
    assert samples['scoring_model_info{name="na\\"me",version="3",package_sha256="abc"}'] == 1


def test_a_lost_worker_leaves_its_counters_and_takes_its_gauges_along() -> None:
    """What was counted stays counted."""
    shared = SharedMetrics(1)
    shared.workers[0].scored(1, 5)
    shared.workers[0].set("connections", 7)
    shared.workers[0].reset_gauges()
    text = shared.exposition("m", "1", "").decode()
    assert "\nscoring_rows_total 5\n" in text
    assert "\nscoring_connections 0\n" in text


def test_every_status_and_code_that_is_raised_can_be_counted() -> None:
    """One missing from the lists would turn a refusal into a failure."""
    raised = [
        (int(status), code)
        for path in SCORING.rglob("*.py")
        for status, code in re.findall(r'RequestError\(\s*(\d{3}), "([a-z0-9_]+)"', path.read_text())
    ]
    assert set() == {code for _, code in raised} - set(CODES)
    guide = (SCORING.parent / "docs" / "scoring.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in guide] == []
    assert set() == {status for status, _ in raised} - set(STATUSES)
    assert len(raised) > 20
