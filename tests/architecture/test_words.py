"""The rules of CONTRIBUTING's section "Words" that a machine can check: docstrings, messages, names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.sources import ROOT, repository_files

CHECKED = {"benchmarks", "diabetes_regression", "emulators", "ml_service", "requirements", "scoring", "tools"}
NOT_A_VERB = re.compile(r"(What|Whatever|Who|Whoever|Whether)\b")
IS_NO = re.compile(r"(?<!there )\bis no (?!longer\b|more\b)")
PARTICIPLES = {"found", "given", "said"}


def findings(source: str) -> Iterator[str]:
    """Yield what is against the rules in a Python source, as ``LINE: finding``."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)) if id(node) in documentation and NOT_A_VERB.match(text):
                yield f"{node.lineno}: a docstring begins with a noun clause: {text[:40]!r}"
            case ast.Constant(value=str(text)) if id(node) not in documentation and IS_NO.search(text):
                yield f"{node.lineno}: a message does not say what is expected: {text[:40]!r}"
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if name in PARTICIPLES:
                yield f"{node.lineno}: a participle as a name: {name}"


def all_findings() -> Iterator[str]:
    """Yield the findings of all code, as ``FILE:LINE: finding``."""
    for path in sorted(repository_files()):
        inside = path.relative_to(ROOT)
        if path.suffix == ".py" and (inside.parts[0] in CHECKED or len(inside.parts) == 1):
            yield from (f"{inside}:{finding}" for finding in findings(path.read_text(encoding="utf-8")))


def test_the_words_are_those_of_contributing() -> None:
    """No noun clause as a docstring, no "is no X" in a message, no participle as a name."""
    assert list(all_findings()) == []


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
