"""The record of a played run: results of stages and jobs, logging commands, artifacts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SUCCEEDED, FAILED, CANCELED, SKIPPED = "Succeeded", "Failed", "Canceled", "Skipped"


class StepFailedError(Exception):
    """A step failed; the message says why."""


@dataclass
class RunRecord:
    """One run of a pipeline as others see it: artifacts by name, tags, branch."""

    build_id: str
    definition: str
    branch: str
    artifacts: Path
    tags: list[str] = field(default_factory=list)


@dataclass
class JobResult:
    """A job's result, its log, and the outputs of its steps as ``STEP.VARIABLE``."""

    result: str
    log: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None


@dataclass
class Played:
    """A run that has ended.

    ``commands`` are the logging commands that the agent understood. ``stood_in`` maps each target that was replaced to
    the one that was played, and each option that was left out to "".
    """

    record: RunRecord
    stages: dict[str, str] = field(default_factory=dict)
    jobs: dict[tuple[str, str], JobResult] = field(default_factory=dict)
    commands: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)
    stood_in: dict[str, str] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """The result that the list of runs shows: red, canceled or green."""
        results = set(self.stages.values())
        return FAILED if FAILED in results else CANCELED if CANCELED in results else SUCCEEDED

    @property
    def log(self) -> str:
        """Everything that was printed."""
        return "\n".join(job.log for job in self.jobs.values())

    def messages(self, command: str) -> list[str]:
        """Return the messages of each logging command of that name."""
        return [message for name, _, message in self.commands if name == command]
