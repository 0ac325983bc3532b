"""What a person reads, and what the agent is told beside it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ml_service.azure_devops import Agent
from ml_service.console import Console, read_outputs
from ml_service.errors import DataError


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_foreign_text_cannot_command_the_agent(stream: io.StringIO) -> None:
    """Not even after a line end inside it."""
    console = Console(stream, agent=Agent(stream))
    console.line("accuracy\n##vso[task.complete result=Succeeded;]done\r##[error]x")
    assert stream.getvalue() == "accuracy\n# #vso[task.complete result=Succeeded;]done # #[error]x\n"


def test_progress_and_warnings_pass_the_same_filter(stream: io.StringIO) -> None:
    """They show the words of steps and servers."""
    console = Console(stream)
    console.progress("##vso[task.complete]\x1b[2J")
    console.warning("##vso[task.complete]")
    assert "##vso[" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_by_hand_nothing_is_said_to_an_agent(stream: io.StringIO, tmp_path: Path) -> None:
    """Outputs, tags, summaries and groups print nothing."""
    console = Console(stream)
    console.output("model_registered", "true")
    console.tag("model-registered")
    console.summary(tmp_path / "summary.md")
    with console.group("run"):
        pass
    assert stream.getvalue() == ""


def test_under_azure_pipelines_outputs_tags_and_groups_are_commands(stream: io.StringIO, tmp_path: Path) -> None:
    """And a warning is also an issue of the run."""
    console = Console(stream, agent=Agent(stream))
    console.output("model_registered", "true")
    console.tag("model-registered")
    console.summary(tmp_path / "summary.md")
    with console.group("run"):
        console.warning("slow")
    assert stream.getvalue().splitlines() == [
        "##vso[task.setvariable variable=model_registered;isoutput=true]true",
        "##vso[build.addbuildtag]model-registered",
        f"##vso[task.uploadsummary]{tmp_path}/summary.md",
        "##[group]run",
        "warning: slow",
        "##vso[task.logissue type=warning]slow",
        "##[endgroup]",
    ]


def test_a_group_ends_when_what_is_in_it_fails(stream: io.StringIO) -> None:
    """Otherwise the error would be folded away."""
    with pytest.raises(KeyError), Console(stream, agent=Agent(stream)).group("run"):
        raise KeyError
    assert stream.getvalue().splitlines()[-1] == "##[endgroup]"


def test_an_error_says_where_why_and_what_next(capsys: pytest.CaptureFixture[str], stream: io.StringIO) -> None:
    """On standard error; the agent gets file and line."""
    error = DataError("BMI is text", where="data/diabetes.csv:7", next_step="mend the row")
    Console(stream, agent=Agent(stream)).error(error)
    assert capsys.readouterr().err == "error: data/diabetes.csv:7: BMI is text\nnext: mend the row\n"
    assert "type=error;sourcepath=data/diabetes.csv;linenumber=7]" in stream.getvalue()


def test_colours_are_for_terminals_only(stream: io.StringIO) -> None:
    """They are added after foreign text was sanitized."""
    Console(stream, colour=True).warning("slow")
    Console(stream).warning("slow")
    assert stream.getvalue() == "\033[33mwarning: slow\033[0m\nwarning: slow\n"


def test_outputs_are_collected_for_ci(tmp_path: Path, stream: io.StringIO) -> None:
    """A later output of the same name wins; without a file there is none."""
    path = tmp_path / "outputs"
    assert read_outputs(path) == {}
    console = Console(stream, outputs=path)
    for name, value in (("look_at", "first"), ("image", "a\nb"), ("look_at", "second")):
        console.output(name, value)
    assert read_outputs(path) == {"look_at": "second", "image": "a\nb"}


def test_the_environment_says_which_console(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """TF_BUILD brings the agent, MLOPS_OUTPUTS the file."""
    Console.from_env({"TF_BUILD": "True", "MLOPS_OUTPUTS": str(tmp_path / "outputs")}).output("a", "b")
    assert capsys.readouterr().out == "##vso[task.setvariable variable=a;isoutput=true]b\n"
    assert read_outputs(tmp_path / "outputs") == {"a": "b"}
    Console.from_env({}).output("a", "b")
    assert capsys.readouterr().out == ""
