"""Waiting with progress, and one deployment at a time on one machine."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

from ml_service.common import lock, waiting
from ml_service.errors import UnavailableError


def test_waiting_ends_when_it_is_true() -> None:
    """The condition is called again until then."""
    answers = iter([False, False, True])
    assert waiting.wait_until(lambda: next(answers), timeout=30, poll=0, report=lambda seconds: None)


def test_waiting_ends_with_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns False, and has reported how long it has waited."""
    monkeypatch.setattr(waiting, "PROGRESS_INTERVAL", 0.02)
    reported: list[float] = []
    assert not waiting.wait_until(lambda: False, timeout=0.2, poll=0.01, report=reported.append)
    assert reported == sorted(reported) and 0 < reported[0] < 0.2


def test_a_lock_that_is_not_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The person who waits is told, then gets an error that names the file."""
    monkeypatch.setattr(lock, "_MARGIN", 0.1)
    file, lines = tmp_path / "local.lock", list[str]()
    with filelock.FileLock(file):
        with pytest.raises(UnavailableError, match="another deployment is still running") as caught:
            with lock.deployment_lock(file, lines.append, longest_deployment=0):
                pytest.fail("two hold the lock")
    assert (caught.value.where, lines) == (str(file), ["another deployment is running; waiting for its end"])


def test_a_lock_is_free_after_the_block(tmp_path: Path) -> None:
    """Nothing is said when nobody had to wait."""
    lines: list[str] = []
    for _ in range(2):
        with lock.deployment_lock(tmp_path / "local.lock", lines.append, longest_deployment=0):
            pass
    assert lines == []
