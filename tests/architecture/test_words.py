"""The rules of CONTRIBUTING's section "Words" that a machine can check: docstrings, messages, names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

import pytest

from tests.support.sources import ROOT, repository_files

CHECKED = {"benchmarks", "diabetes_regression", "emulators", "ml_service", "requirements", "scoring", "tools"}
NOT_A_VERB = re.compile(r"(What|Whatever|Who|Whoever|Whether)\b")
IS_NO = re.compile(r"(?<!there )\bis no (?!longer\b|more\b)")
PARTICIPLES = {"found", "given", "said"}

NOT_YET = {
    "ml_service",
    "ml_service/common",
    "ml_service/targets/docker",
    "ml_service/targets/local",
    "ml_service/targets/webapp",
    "scoring/scoring_service/http",
    "scoring/scoring_service/model",
    "tasks.py",
}
"""The folders whose words are still the old ones. One that has become clean leaves this list."""


def findings(source: str) -> Iterator[str]:
    """Yield what is against the rules in a Python source, as ``LINE: finding``."""
    tree = ast.parse(source)
    documentation = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if node in documentation and NOT_A_VERB.match(text):
                yield f"{node.lineno}: a docstring begins with a noun clause: {text[:40]!r}"
            case ast.Constant(value=str(text)) if node not in documentation and IS_NO.search(text):
                yield f"{node.lineno}: a message does not say what is expected: {text[:40]!r}"
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if name in PARTICIPLES:
                yield f"{node.lineno}: a participle as a name: {name}"


def by_folder() -> Mapping[str, list[str]]:
    """Return the findings of each folder of code; a script at the top is a folder of its own."""
    folders: dict[str, list[str]] = {}
    for path in sorted(repository_files()):
        inside = path.relative_to(ROOT)
        if path.suffix == ".py" and (inside.parts[0] in CHECKED or len(inside.parts) == 1):
            folder = str(inside.parent) if len(inside.parts) > 1 else str(inside)
            listed = [f"{inside}:{finding}" for finding in findings(path.read_text(encoding="utf-8"))]
            folders.setdefault(folder, []).extend(listed)
    return folders


def test_the_words_are_those_of_contributing() -> None:
    """No noun clause as a docstring, no "is no X" in a message, no participle as a name, outside of the list."""
    assert [finding for folder, listed in by_folder().items() if folder not in NOT_YET for finding in listed] == []


def test_the_list_of_exceptions_is_exact() -> None:
    """A folder that has become clean stays clean: it leaves the list."""
    assert {folder for folder, listed in by_folder().items() if listed} == NOT_YET


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('def f():\n    """What serves."""', ["2: a docstring begins with a noun clause: 'What serves.'"]),
        ('LIMIT = 1\n"""Whether it holds."""', ["2: a docstring begins with a noun clause: 'Whether it holds.'"]),
        ("raise Error(f'{x} is no port')", ["1: a message does not say what is expected: ' is no port'"]),
        ("found = 1", ["1: a participle as a name: found"]),
        ("def f(given): ...", ["1: a participle as a name: given"]),
        ('def f():\n    """Return what serves. Whether or not it is healthy."""', []),
        ("raise Error('there is no port 1', 'it is no longer there')", []),
        ("print(found)", []),
    ],
)
def test_a_planted_word_is_seen(source: str, expected: list[str]) -> None:
    """The rules above see what they are there for, and nothing else."""
    assert list(findings(source)) == expected
