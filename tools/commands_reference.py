"""``python -m tools.commands_reference``: writes the reference of all tasks, docs/commands.md, from the tasks.

With ``--check`` nothing is written, and a page that is not what the tasks say ends with exit code 1.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext

from ml_service import errors
from tasks import ns

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"

GROUPS: Mapping[str, Sequence[str]] = {
    "Your model": ("ci", "validate-data"),
    "Train and gate": ("publish", "train", "check-model", "withdraw"),
    "Deploy": ("package-artifact", "build-image", "deploy", "smoke", "promote", "rollback", "redeploy", "undeploy"),
    "Watch": ("status", "logs", "keys", "ui"),
    "Housekeeping": ("doctor", "lint", "test", "coverage", "azureml-emulator"),
}
"""The headings of the page, and the tasks below each: a new task is added here."""

_COMMON = ("platform", "project", "build-id")
_GENERATED = re.compile(r"(<!-- generated (tasks|codes) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """Return ``text`` with its generated blocks written anew.

    Raises:
        ValueError: a task is in no group, or a group names a task that does not exist.
    """
    blocks = {"tasks": _tasks, "codes": _codes}
    return _GENERATED.sub(lambda block: "\n".join([block[1].rstrip(), *blocks[block[2]](), block[3]]), text)


def _tasks() -> Iterator[str]:
    contexts = {str(context.name): context for context in ns.to_contexts()}
    grouped = [name for group in GROUPS.values() for name in group]
    if sorted(grouped) != sorted(contexts):
        wrong = sorted(contexts.keys() ^ set(grouped)) or grouped
        raise ValueError(f"expected each task in one group of tools/commands_reference.py: {', '.join(wrong)}")
    yield "| | |"
    yield "|---|---|"
    for heading, names in GROUPS.items():
        yield f"| {heading} | {' · '.join(f'[{name}](#{name})' for name in names)} |"
    yield ""
    yield "Options of every task:"
    yield ""
    yield from _options(contexts["ci"], _COMMON)
    for heading, names in GROUPS.items():
        yield f"## {heading}"
        yield ""
        for name in names:
            yield from _task(ns[name].__doc__ or "", contexts[name])


def _task(docstring: str, context: ParserContext) -> Iterator[str]:
    yield f"### {context.name}"
    yield ""
    text, _, examples = inspect.cleandoc(docstring).partition("Examples: ")
    yield text.strip()
    yield ""
    yield from _options(context, sorted(set(context.args) - set(_COMMON)))
    if examples:
        yield "Examples: " + " · ".join(f"`{example}`" for example in examples.split(" · "))
        yield ""


def _options(context: ParserContext, names: Sequence[str]) -> Iterator[str]:
    if not names:
        return
    yield "| option | |"
    yield "|---|---|"
    for name in names:
        argument = context.args[name]
        yield f"| `{_spelled(argument)}` | {argument.help or ''} |"
    yield ""


def _spelled(argument: Argument) -> str:
    """Return an option as a person types it; a flag that is on by default is typed to switch it off."""
    name = argument.names[0]
    if argument.kind is bool:
        return f"--no-{name}" if argument.default else f"--{name}"
    return f"--{name} {'NUMBER' if issubclass(argument.kind, int) else 'VALUE'}"


def _codes() -> Iterator[str]:
    yield "| exit code | meaning |"
    yield "|---:|---|"
    yield "| 0 | The task has done what it was asked to do. A rejected candidate is a normal end. |"
    for kind in sorted(errors.MlopsError.__subclasses__(), key=lambda kind: kind.exit_code):
        yield f"| {kind.exit_code} | {inspect.cleandoc(kind.__doc__ or '').splitlines()[0]} |"
    yield "| 130 | Interrupted by Ctrl-C. |"


def main() -> None:
    """Write, or with ``--check`` compare, the page."""
    text = PAGE.read_text(encoding="utf-8")
    if (new := rendered(text)) == text:
        return
    if "--check" in sys.argv:
        sys.exit("docs/commands.md is not what the tasks say; run: python -m tools.commands_reference")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
