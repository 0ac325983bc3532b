"""Look at what the tasks will need."""

from __future__ import annotations

from collections.abc import Sequence

from ml_service.console import Console
from ml_service.errors import (
    ConfigurationError,
)
from ml_service.ports import (
    Platform,
    Target,
)


def doctor(platform: Platform, targets: Sequence[Target], console: Console) -> None:
    """Look at what the tasks will need.

    Raises:
        ConfigurationError: something is not as it should be; each line before says what to do.
    """
    findings = [(platform.name, finding) for finding in platform.diagnose()]
    findings += [(target.name, finding) for target in targets for finding in target.diagnose()]
    for name, finding in findings:
        console.line(f"{'ok  ' if finding.ok else 'FAIL'} {name}: {finding.subject}: {finding.detail}")
        if not finding.ok and finding.next_step:
            console.line(f"     next: {finding.next_step}")
    if failed := sum(not finding.ok for _, finding in findings):
        raise ConfigurationError(
            f"{failed} of {len(findings)} findings need attention", where="doctor", next_step="see above"
        )
