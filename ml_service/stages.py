"""The stages of ``inv ci``: which tasks, in which order, and the table at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_service.console import Console, read_outputs

FAILED, SKIPPED, PASSED, INTERRUPTED, NOT_RUN = "failed", "skipped", "passed", "interrupted", "not run"
INTERRUPTED_CODE = 130

_TO_NOTICE = 10.0
"""Seconds in which an interrupted stage ends by itself, when the terminal told it."""


@dataclass(frozen=True)
class Stage:
    """One task with its arguments. ``needs_model`` stages are skipped when the gate registered nothing."""

    task: str
    arguments: tuple[str, ...] = ()
    needs_model: bool = False

    @property
    def command(self) -> str:
        """Return the command that a person would type."""
        return " ".join(["inv", self.task, *self.arguments])


STAGES: tuple[Stage, ...] = (
    Stage("lint"),
    Stage("test", ("--quick",)),
    Stage("coverage", ("--quick",)),
    Stage("validate-data"),
    Stage("publish"),
    Stage("train"),
    Stage("check-model"),
    Stage("package-artifact", needs_model=True),
    Stage("build-image", needs_model=True),
    Stage("deploy", ("--target", "local"), needs_model=True),
    Stage("smoke", ("--target", "local"), needs_model=True),
)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: one row of the table. ``look_at`` is a result, a file or an address."""

    stage: str
    outcome: str
    seconds: float = 0.0
    look_at: str = ""
    exit_code: int = 0


def run_stages(root: Path, env: Mapping[str, str], console: Console, stages: Sequence[Stage] = STAGES) -> list[Outcome]:
    """Run the stages one after the other; after the first failure the others are not run.

    Each stage is a process, just as in a pipeline, and tells through MLOPS_OUTPUTS what it found.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-ci-") as directory:
        outputs = Path(directory) / "outputs"
        return list(_outcomes(root, {**env, "MLOPS_OUTPUTS": str(outputs)}, outputs, console, stages))


def _outcomes(
    root: Path, env: Mapping[str, str], outputs: Path, console: Console, stages: Sequence[Stage]
) -> Iterator[Outcome]:
    ended = False
    registered = ""
    for stage in stages:
        if ended:
            yield Outcome(stage.task, NOT_RUN)
        elif stage.needs_model and registered == "false":
            yield Outcome(stage.task, SKIPPED, look_at="the model was not registered")
        else:
            outputs.unlink(missing_ok=True)
            with console.group(stage.command):
                console.line(f"── {stage.command}")
                outcome = _run(stage, root, env, outputs)
            ended = outcome.outcome in (FAILED, INTERRUPTED)
            registered = read_outputs(outputs).get("model_registered", registered)
            yield outcome


def _run(stage: Stage, root: Path, env: Mapping[str, str], outputs: Path) -> Outcome:
    started = time.monotonic()
    command = [sys.executable, "-m", "invoke", stage.task, *stage.arguments]
    code = _wait(subprocess.Popen(command, cwd=root, env=dict(env)))
    seconds = time.monotonic() - started
    written = read_outputs(outputs)
    if code in (INTERRUPTED_CODE, -signal.SIGINT):
        return Outcome(stage.task, INTERRUPTED, seconds, f"again: {stage.command}", INTERRUPTED_CODE)
    if code:
        return Outcome(stage.task, FAILED, seconds, f"exit code {code}; again: {stage.command}", code)
    if "skipped" in written:
        return Outcome(stage.task, SKIPPED, seconds, written["skipped"])
    return Outcome(stage.task, PASSED, seconds, written.get("look_at", ""))


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code. A terminal's Ctrl-C reaches the stage, too, and a second one would disturb its tidying up: it is
    passed on only to a stage that does not seem to know of it."""
    interrupted = False
    while True:
        try:
            return process.wait(_TO_NOTICE if interrupted else None)
        except KeyboardInterrupt:
            interrupted = True
        except subprocess.TimeoutExpired:
            interrupted = False
            process.send_signal(signal.SIGINT)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """That of the stage that failed, else 0."""
    return next((outcome.exit_code for outcome in outcomes if outcome.exit_code), 0)
