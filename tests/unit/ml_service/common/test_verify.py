"""Verifying a candidate: which errors are the candidate's own, and which are passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_service.common.errors import LOG_LINES, unhealthy
from ml_service.common.verify import verify_candidate
from ml_service.errors import MlopsError, UnavailableError, UnhealthyError
from ml_service.ports import Endpoint

ENDPOINT = Endpoint("http://127.0.0.1:1", "key")


def made(reason: str) -> UnhealthyError:
    """Make the error as a target does."""
    return unhealthy("toy", f"did not pass: {reason}", [f"line {n}" for n in range(LOG_LINES + 5)], "see the log")


def raising(error: Exception) -> MlopsError:
    """Return what comes out when the verification raises ``error``."""

    def verify(endpoint: Endpoint, package: Path | None) -> None:
        raise error

    with pytest.raises(MlopsError) as caught:
        verify_candidate(verify, ENDPOINT, None, made)
    return caught.value


def test_a_candidate_that_passes_raises_nothing() -> None:
    """It is asked at its own address, with the package."""
    asked: list[object] = []
    verify_candidate(lambda endpoint, package: asked.append((endpoint, package)), ENDPOINT, Path("package"), made)
    assert asked == [(ENDPOINT, Path("package"))]


def test_a_wrong_answer_is_told_with_the_last_log_lines() -> None:
    """The newest ones, oldest first."""
    error = raising(UnhealthyError("example 1 answers 3"))
    assert error.what.startswith("did not pass: example 1 answers 3\nlast log lines:\n  | line 5\n")
    assert error.what.endswith(f"\n  | line {LOG_LINES + 4}")


def test_any_exception_of_the_verification_is_the_candidates_fault() -> None:
    """Nothing goes wrong silently."""
    assert "did not pass: ZeroDivisionError: x" in raising(ZeroDivisionError("x")).what


def test_an_error_of_another_kind_is_passed_on() -> None:
    """An unreachable registry says nothing about the candidate."""
    error = UnavailableError("does not answer")
    assert raising(error) is error
