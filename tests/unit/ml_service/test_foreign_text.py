"""What the tasks say to Azure Pipelines' agent, and that nobody else can say anything to it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_service.azure_devops import Agent, sanitize_log_line
from ml_service.console import Console
from ml_service.errors import DataError

PLANTED = "##vso[task.setvariable variable=PATH]/tmp"
COMMAND = re.compile(r"##\s*(vso)?\s*\[", re.IGNORECASE)


def console() -> tuple[Console, io.StringIO]:
    """A console with an agent, and what it printed."""
    stream = io.StringIO()
    return Console(stream, agent=Agent(stream)), stream


@pytest.mark.parametrize(
    "foreign",
    [
        PLANTED,
        f"step 1 done {PLANTED}",
        f"first\n{PLANTED}",
        f"first\r{PLANTED}",
        "##[error]all is lost",
        "## vso[task.complete result=Succeeded]",
        "##VSO[build.addbuildtag]model-registered",
        f"\x1b[2J{PLANTED}",
        "\u2028" + PLANTED,
    ],
)
def test_foreign_text_cannot_command_the_agent(foreign: str) -> None:
    """A step's log, a CSV cell, a branch's name: printed, and no command, wherever it is printed."""
    said, stream = console()
    for say in (said.line, said.progress):
        say(foreign)
    assert not COMMAND.search(stream.getvalue())
    assert all(character in "\n" or character >= " " for character in stream.getvalue())


@given(st.text(alphabet="#vsoVSO[] ]\n\r\x0bx;=%", max_size=40))
def test_no_text_at_all_is_a_command(foreign: str) -> None:
    """Whatever is thrown at it."""
    said, stream = console()
    said.line(foreign)
    assert not COMMAND.search(stream.getvalue())
    assert sanitize_log_line(sanitize_log_line(foreign)) == sanitize_log_line(foreign)


def test_a_value_cannot_begin_a_second_command() -> None:
    """An output, an issue and a tag of foreign text are one command on one line each."""
    said, stream = console()
    said.output("model_name", f"x\n{PLANTED}")
    said.finding(f"a]b;c\n{PLANTED}", "data;x.csv:3")
    said.tag(f"t\n{PLANTED}")
    with said.group(f"run {PLANTED}"):
        pass
    lines = stream.getvalue().splitlines()
    assert lines[0] == f"##vso[task.setvariable variable=model_name;isoutput=true]x%0A{PLANTED}"
    assert len(lines) == 5
    assert [line.index("##") for line in lines] == [0] * 5


def test_an_error_is_an_issue_beside_its_line() -> None:
    """With file and line where there is one; without, it is on the run's page all the same."""
    said, stream = console()
    said.error(DataError("is no number", where="data/diabetes.csv:7"))
    said.error(DataError("rejected", where="python -m diabetes_regression train"))
    first, second = (line for line in stream.getvalue().splitlines() if line.startswith("##vso[task.logissue"))
    assert first.startswith("##vso[task.logissue type=error;sourcepath=data/diabetes.csv;linenumber=7]")
    assert second.startswith("##vso[task.logissue type=error]")


def test_outputs_tags_groups_and_the_summary_are_commands(tmp_path: Path) -> None:
    """As the agent's documentation writes them."""
    said, stream = console()
    said.output("pipeline_id", "p.1")
    said.tag("model-registered")
    said.warning("slow")
    with said.group("run 7"):
        said.line("inside")
    said.summary(tmp_path / "s.md")
    assert stream.getvalue().splitlines() == [
        "##vso[task.setvariable variable=pipeline_id;isoutput=true]p.1",
        "##vso[build.addbuildtag]model-registered",
        "warning: slow",
        "##vso[task.logissue type=warning]slow",
        "##[group]run 7",
        "inside",
        "##[endgroup]",
        f"##vso[task.uploadsummary]{tmp_path / 's.md'}",
    ]


def test_without_an_agent_nothing_of_this_is_printed(tmp_path: Path) -> None:
    """A person sees text."""
    stream = io.StringIO()
    said = Console.from_env({})
    said = Console(stream)
    said.output("pipeline_id", "p.1")
    said.tag("x")
    said.finding("bad", "a:1")
    said.summary(tmp_path / "s.md")
    with said.group("g"):
        said.line("inside")
    assert stream.getvalue() == "inside\n"
