"""The agent's commands: ours arrive whole, and no text from outside becomes one."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_service.azure_devops import Agent, sanitize_log_line

PLANTED = [
    "##vso[task.setvariable variable=image]evil",
    "accuracy ##vso[task.complete result=Succeeded;]",
    "##VSO[task.prependpath]/tmp",
    "###vso[build.addbuildtag]x",
    "## vso[task.complete]",
    "##\x00vso[task.complete]",
    "##\x1bvso[task.complete]",
    "##[error]not mine",
    "##[group]hides what follows",
]


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_command_is_only_text(text: str) -> None:
    """The agent looks for ``##vso[`` anywhere in a line, and ``##[`` at its beginning."""
    assert not re.search(r"##\s*(vso)?\s*\[", sanitize_log_line(text), re.IGNORECASE)


@given(st.text(alphabet=st.one_of(st.sampled_from("#vVsSoO[] \t\r\n\x00\x1b\x85\u2028"), st.characters())))
def test_no_text_at_all_becomes_a_command_or_steers_a_terminal(text: str) -> None:
    """Whatever a log, a model's name or an error message holds."""
    safe = sanitize_log_line(text.replace("\n", " "))
    assert "##vso[" not in safe.lower()
    assert "##[" not in safe
    assert len(safe.splitlines()) <= 1
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]", safe)


@pytest.mark.parametrize("text", ["mse 3295.7, R² 0.44", "a # b ## c", "[1, 2]", "\tindented"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    """Only what the agent or a terminal would obey is changed."""
    assert sanitize_log_line(text) == text


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_an_output_is_one_command(stream: io.StringIO) -> None:
    """Other jobs read it, so it is an output variable."""
    Agent(stream).set_output("image", "registry/name@sha256:1")
    assert stream.getvalue() == "##vso[task.setvariable variable=image;isoutput=true]registry/name@sha256:1\n"


def test_a_value_can_neither_end_its_command_nor_start_another(stream: io.StringIO) -> None:
    """Line ends are escaped the way the agent decodes them."""
    Agent(stream).set_output("model_name", "a\r\n##vso[task.complete]100%")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("]a%0D%0A##vso[task.complete]100%AZP25\n")


def test_a_property_cannot_end_the_list_of_properties(stream: io.StringIO) -> None:
    """Brackets and semicolons are escaped in properties."""
    Agent(stream).issue("error", "no", source="a];type=warning:3")
    expected = "##vso[task.logissue type=error;sourcepath=a%5D%3Btype=warning;linenumber=3]no\n"
    assert stream.getvalue() == expected


def test_an_issue_without_a_line_has_no_source(stream: io.StringIO) -> None:
    """A setting or a service is no file."""
    Agent(stream).issue("warning", "slow", source="LOCAL_PORT")
    assert stream.getvalue() == "##vso[task.logissue type=warning]slow\n"


def test_tags_summaries_and_groups_are_commands_too(stream: io.StringIO, tmp_path: Path) -> None:
    """A group's title is text from outside as well."""
    agent = Agent(stream)
    agent.add_build_tag("model-registered")
    agent.upload_summary(tmp_path / "summary.md")
    agent.begin_group("run ##vso[x]")
    agent.end_group()
    assert stream.getvalue().splitlines() == [
        "##vso[build.addbuildtag]model-registered",
        f"##vso[task.uploadsummary]{tmp_path}/summary.md",
        "##[group]run # #vso[x]",
        "##[endgroup]",
    ]
