"""Verify a candidate before it gets traffic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ml_service.errors import MlopsError, UnhealthyError
from ml_service.ports import Endpoint, Verify

if TYPE_CHECKING:
    import requests


def verify_candidate(
    verify: Verify, endpoint: Endpoint, package: Path | None, unhealthy: Callable[[str], UnhealthyError]
) -> None:
    """Call ``verify`` on the candidate at ``endpoint``.

    Args:
        unhealthy: makes the error to raise from the reason; it adds the candidate's last log lines.

    Raises:
        UnhealthyError: the candidate did not pass, or the verification itself failed.
        MlopsError: of another kind, such as an unreachable registry; it is passed on as it is.
    """
    try:
        verify(endpoint, package)
    except Exception as error:
        if isinstance(error, MlopsError) and not isinstance(error, UnhealthyError):
            raise
        reason = error.what if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
        raise unhealthy(reason) from error


def is_ready(session: requests.Session, url: str) -> bool:
    """Return whether ``/health/ready`` at ``url`` answers 200 now."""
    import requests

    with suppress(requests.RequestException):
        return session.get(f"{url}/health/ready", timeout=5).status_code == 200
    return False
