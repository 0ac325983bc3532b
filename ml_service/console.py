"""Print for a person. Under Azure Pipelines the same calls also give the agent its commands (see azure_devops.py)."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ml_service.azure_devops import Agent, sanitize_log_line
from ml_service.errors import MlopsError

_DIM, _RED, _YELLOW, _PLAIN = "\033[2m", "\033[31m", "\033[33m", "\033[0m"


class Console:
    """Prints lines. Everything that passes through is sanitized first: no text from outside can command the
    agent.

    ``outputs`` is a file to which each output is added as a JSON line: how ``inv ci`` learns what a stage found.
    """

    def __init__(
        self, stream: TextIO, *, agent: Agent | None = None, outputs: Path | None = None, colour: bool = False
    ) -> None:
        self._stream = stream
        self._agent = agent
        self._outputs = outputs
        self._colour = colour
        self._started = time.monotonic()

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Console:
        """Return the console of a task: colours on a terminal only, an agent under Azure Pipelines only."""
        outputs = env.get("MLOPS_OUTPUTS")
        return cls(
            sys.stdout,
            agent=Agent(sys.stdout) if env.get("TF_BUILD") else None,
            outputs=Path(outputs) if outputs else None,
            colour=sys.stdout.isatty() and "NO_COLOR" not in env,
        )

    @property
    def has_agent(self) -> bool:
        """Return whether an agent of Azure Pipelines reads the output, too."""
        return self._agent is not None

    def line(self, text: str) -> None:
        """Print a line."""
        self._print(text)

    def progress(self, text: str) -> None:
        """Print what is being done now, with the seconds since the task began."""
        self._print(f"  {time.monotonic() - self._started:5.1f} s  {text}", _DIM)

    def warning(self, text: str) -> None:
        """Print a warning."""
        self._print(f"warning: {text}", _YELLOW)
        if self._agent:
            self._agent.issue("warning", text)

    def finding(self, text: str, source: str) -> None:
        """One thing wrong with a file, ``source`` being ``FILE:LINE``: beside that line, where a pipeline shows files.

        Whoever calls it prints the finding, too.
        """
        if self._agent:
            self._agent.issue("error", text, source=source)

    def error(self, error: MlopsError) -> None:
        """Print what went wrong, where, and what to do next."""
        self._print(f"error: {error}", _RED, sys.stderr)
        if self._agent:
            self._agent.issue("error", str(error), source=error.where)

    def unexpected(self, error: Exception) -> None:
        """Print the traceback of an error that nobody has put into words, then the error."""
        for line in "".join(traceback.format_exception(error)).rstrip().splitlines():
            self._print(line, _DIM, sys.stderr)
        reason = str(error).strip().split("\n")[0]
        what = f"unexpected {type(error).__name__}" + (f": {reason}" if reason else "")
        self.error(MlopsError(what, next_step="this is a fault of the tasks: report it with the lines above"))

    def output(self, name: str, value: str) -> None:
        """Hand a result to the caller of the task: the pipeline, ``inv ci`` or a person."""
        if self._agent:
            self._agent.set_output(name, value)
        if self._outputs:
            with self._outputs.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: value}) + "\n")

    def tag(self, tag: str) -> None:
        """Tag the pipeline's run, where there is one."""
        if self._agent:
            self._agent.add_build_tag(tag)

    def summary(self, markdown: Path) -> None:
        """Show a Markdown file on the page of the pipeline's run, where there is one."""
        if self._agent:
            self._agent.upload_summary(markdown)

    @contextmanager
    def group(self, title: str) -> Iterator[None]:
        """Lines that belong together; the agent's log folds them."""
        if self._agent:
            self._agent.begin_group(title)
        try:
            yield
        finally:
            if self._agent:
                self._agent.end_group()

    def _print(self, text: str, colour: str = "", stream: TextIO | None = None) -> None:
        for line in text.split("\n"):
            safe = sanitize_log_line(line)
            print(
                f"{colour}{safe}{_PLAIN}" if colour and self._colour else safe, file=stream or self._stream, flush=True
            )


def read_outputs(path: Path) -> dict[str, str]:
    """Return the outputs that tasks added to ``path``; a later one of the same name wins."""
    if not path.exists():
        return {}
    merged: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        merged |= json.loads(line)
    return merged
