"""The table that ``inv ci`` ends with."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console as RichConsole
from rich.table import Table

from ml_service.azure_devops import sanitize_log_line
from ml_service.stages import FAILED, INTERRUPTED, NOT_RUN, PASSED, SKIPPED, Outcome

_STYLES = {PASSED: "green", FAILED: "red", INTERRUPTED: "red", SKIPPED: "yellow", NOT_RUN: "dim"}


def stage_table(outcomes: Sequence[Outcome]) -> Table:
    """Stage, outcome, seconds, what to look at."""
    table = Table(title="inv ci", title_justify="left", header_style="bold")
    table.add_column("stage")
    table.add_column("outcome")
    table.add_column("seconds", justify="right")
    table.add_column("what to look at", overflow="fold")
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.seconds else ""
        style = _STYLES[outcome.outcome]
        table.add_row(
            outcome.stage,
            f"[{style}]{outcome.outcome}[/]",
            seconds,
            sanitize_log_line(outcome.look_at).replace("[", r"\["),
        )
    return table


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Print the table; at least 100 columns wide where the width is unknown, so that a log keeps its lines."""
    console = RichConsole(highlight=False)
    if not console.is_terminal:
        console = RichConsole(highlight=False, width=120)
    console.print(stage_table(outcomes))
