"""What ``inv ci`` runs, and the table it ends with."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from ml_service.console import Console
from ml_service.stage_table import print_table, stage_table
from ml_service.stages import STAGES, Outcome, Stage, exit_code, run_stages

pytestmark = pytest.mark.slow

TASKS = """
import json, os, signal, sys, time
from invoke import task
from invoke.exceptions import Exit

def say(**outputs):
    with open(os.environ["MLOPS_OUTPUTS"], "a") as file:
        file.write(json.dumps(outputs) + "\\n")

@task
def fine(c):
    say(look_at="reports/fine.xml")

@task
def skips(c):
    say(skipped="no container engine")

@task
def fails(c):
    raise Exit(code=3)

@task
def check(c, registered):
    say(model_registered=registered, look_at="verdict")

@task
def interrupted(c):
    raise Exit(code=130)

@task
def waits(c):
    open("waiting", "w").close()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.2)
        open("tidied", "w").close()
        raise Exit(code=130)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose tasks end as their names say."""
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def run(root: Path, *stages: Stage) -> list[Outcome]:
    """The outcomes of these stages, without their times."""
    outcomes = run_stages(root, dict(os.environ), Console(io.StringIO()), stages)
    return [Outcome(each.stage, each.outcome, 0.0, each.look_at, each.exit_code) for each in outcomes]


def test_each_stage_tells_what_to_look_at(root: Path) -> None:
    """What one stage found is not shown for the next."""
    outcomes = run(root, Stage("fine"), Stage("check", ("true",)), Stage("skips"))
    assert outcomes == [
        Outcome("fine", "passed", look_at="reports/fine.xml"),
        Outcome("check", "passed", look_at="verdict"),
        Outcome("skips", "skipped", look_at="no container engine"),
    ]
    assert exit_code(outcomes) == 0


def test_after_the_first_failure_nothing_runs(root: Path) -> None:
    """The exit code is that of the stage that failed; the command to repeat it is told."""
    outcomes = run(root, Stage("fails", ()), Stage("fine"), Stage("fine", needs_model=True))
    assert outcomes == [
        Outcome("fails", "failed", look_at="exit code 3; again: inv fails", exit_code=3),
        Outcome("fine", "not run"),
        Outcome("fine", "not run"),
    ]
    assert exit_code(outcomes) == 3


def test_a_rejected_model_is_no_failure(root: Path) -> None:
    """What needs a model shows as skipped, and why; what does not is run."""
    outcomes = run(root, Stage("check", ("false",)), Stage("fails", needs_model=True), Stage("fine"))
    assert [(each.stage, each.outcome, each.look_at) for each in outcomes[1:]] == [
        ("fails", "skipped", "the model was not registered"),
        ("fine", "passed", "reports/fine.xml"),
    ]
    assert exit_code(outcomes) == 0


def test_an_interrupted_stage_ends_the_run(root: Path) -> None:
    """Exit code 130, as shells have it."""
    outcomes = run(root, Stage("interrupted"), Stage("fine"))
    assert [each.outcome for each in outcomes] == ["interrupted", "not run"]
    assert exit_code(outcomes) == 130


def test_an_interrupt_gives_the_stage_time_to_leave_things_whole(root: Path) -> None:
    """The run waits for its end, and then shows the table."""
    code = (
        "import io, os, sys\nfrom pathlib import Path\nfrom ml_service.console import Console\n"
        "from ml_service.stages import Stage, run_stages\n"
        "found = run_stages(Path(sys.argv[1]), dict(os.environ), Console(io.StringIO()), [Stage('waits')])\n"
        "print(found[0].outcome)"
    )
    repository = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], cwd=repository, stdout=subprocess.PIPE)
    started = threading.Event()
    while not (root / "waiting").exists() and process.poll() is None:
        started.wait(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.decode().strip() == "interrupted"
    assert (root / "tidied").exists()


def test_the_stages_are_those_of_the_guide_in_their_order() -> None:
    """From lint to smoke test."""
    assert [stage.command for stage in STAGES] == [
        "inv lint",
        "inv test --quick",
        "inv coverage --quick",
        "inv validate-data",
        "inv publish",
        "inv train",
        "inv check-model",
        "inv package-artifact",
        "inv build-image",
        "inv deploy --target local",
        "inv smoke --target local",
    ]


def test_the_table_shows_each_stage_with_its_time() -> None:
    """Text from outside is shown as it is, neither as markup nor as a command."""
    outcomes = [
        Outcome("train", "passed", 2.25, "[red]m:1[/] ##vso[task.complete]"),
        Outcome("deploy", "skipped", look_at="why"),
        Outcome("smoke", "not run"),
        Outcome("lint", "failed", 1, "x", 1),
    ]
    stream = io.StringIO()
    RichConsole(file=stream, width=120).print(stage_table(outcomes))
    rows = stream.getvalue().splitlines()
    row = next(line for line in rows if "train" in line)
    assert "2.2" in row
    assert "[red]m:1[/] # #vso[task.complete]" in row
    assert any("deploy" in line and "skipped" in line and "why" in line for line in rows)


def test_in_a_log_the_table_is_wide_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal nothing is folded at 80 columns."""
    print_table([Outcome("train", "passed", 1.0, "x" * 70)])
    assert "x" * 70 in capsys.readouterr().out
