"""Check what the tasks will need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_service import project
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.errors import ConfigurationError, DataError, UnavailableError
from ml_service.ports import Finding, Platform, Target
from ml_service.workflows.artifact import refuse_other_files
from ml_service.workflows.training import data_file


def doctor(platform: Platform, targets: Sequence[Target], console: Console) -> None:
    """Check what the tasks will need, and print a line for each finding.

    Raises:
        ConfigurationError: something needs attention; the lines before say what to do.
    """
    owners: list[Platform | Target] = [platform, *targets]
    findings = [finding for owner in owners for finding in _findings(owner, console)]
    if failed := sum(not finding.ok for finding in findings):
        raise ConfigurationError(
            f"{failed} of {len(findings)} findings need attention", where="doctor", next_step="see above"
        )


def check_before_stages(
    settings: Settings, platform: Platform, target: Target, console: Console, *, artifact: Path
) -> None:
    """Check what the stages of ``inv ci`` will need, before the first of them runs. What answers at once comes first.

    Raises:
        ConfigurationError: the project's description is invalid.
        DataError: the data file is missing.
        UsageError: ``artifact`` holds other files, which the stages would have to replace.
        UnavailableError: a port, a disk or a store is not available; names it and what to do.
    """
    file = data_file(settings, project.read_project(settings.root, settings.project))
    if not file.is_file():
        raise DataError(
            "there is no such data file", where=str(file), next_step="check DATA_FILE, or the data of project.json"
        )
    refuse_other_files(artifact)
    for owner in (target, platform):
        for finding in _findings(owner, console):
            if not finding.ok:
                raise UnavailableError(finding.detail, where=finding.subject, next_step=finding.next_step)


def _findings(owner: Platform | Target, console: Console) -> Sequence[Finding]:
    findings = owner.diagnose()
    for finding in findings:
        console.line(f"{'ok  ' if finding.ok else 'FAIL'} {owner.name}: {finding.subject}: {finding.detail}")
        if not finding.ok and finding.next_step:
            console.line(f"     next: {finding.next_step}")
    return findings
