"""The logging commands of the Azure Pipelines agent.

Source: https://learn.microsoft.com/azure/devops/pipelines/scripts/logging-commands
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TextIO

_COMMAND = re.compile(r"##(?=\s*(?:vso)?\s*\[)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def sanitize_log_line(line: str) -> str:
    """``line`` as text that neither ends the line, nor steers a terminal, nor is read as a command by the agent."""
    return _COMMAND.sub("# #", _CONTROL.sub(" ", line))


def _escaped(value: str) -> str:
    """A command's message: the agent decodes these."""
    return value.replace("%", "%AZP25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    """A command's property: also what ends one."""
    return _escaped(value).replace("]", "%5D").replace(";", "%3B")


class Agent:
    """Speaks to the agent through the task's standard output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def set_output(self, name: str, value: str) -> None:
        """An output variable of the step; the step needs a name to be read from elsewhere."""
        self._command("task.setvariable", value, variable=name, isoutput="true")

    def issue(self, kind: str, message: str, source: str = "") -> None:
        """A warning or error on the run's page; ``source`` may be ``FILE`` or ``FILE:LINE``."""
        path, _, line = source.rpartition(":")
        if path and line.isdecimal():
            self._command("task.logissue", message, type=kind, sourcepath=path, linenumber=line)
        else:
            self._command("task.logissue", message, type=kind)

    def add_build_tag(self, tag: str) -> None:
        """Tag the run, for triggers and downloads to filter on."""
        self._command("build.addbuildtag", tag)

    def upload_summary(self, markdown: Path) -> None:
        """Show a Markdown file on the run's page."""
        self._command("task.uploadsummary", str(markdown.absolute()))

    def begin_group(self, title: str) -> None:
        """The lines until ``end_group`` are folded."""
        print(f"##[group]{sanitize_log_line(title)}", file=self._stream, flush=True)

    def end_group(self) -> None:
        """Ends what ``begin_group`` began."""
        print("##[endgroup]", file=self._stream, flush=True)

    def _command(self, command: str, message: str, **properties: str) -> None:
        listed = ";".join(f"{name}={_property(value)}" for name, value in properties.items())
        print(f"##vso[{command}{' ' + listed if listed else ''}]{_escaped(message)}", file=self._stream, flush=True)
