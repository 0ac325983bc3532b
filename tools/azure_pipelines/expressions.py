"""Azure's expressions: ``${{ … }}`` when templates are expanded, ``$[ … ]`` and conditions while a pipeline runs.

Source: https://learn.microsoft.com/azure/devops/pipelines/process/expressions
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<mark>[(),.\[\]]))"""
)


class ExpressionError(Exception):
    """An expression that cannot be read or evaluated."""


@dataclass(frozen=True)
class Literal:
    """A text, a number, true, false or null."""

    value: object


@dataclass(frozen=True)
class Call:
    """A function with its arguments."""

    name: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Lookup:
    """A value by its path, such as ``dependencies.A.outputs['J.s.v']``: the context, then names or expressions."""

    path: tuple[Expression, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The path, where all of it is written out."""
        return tuple(str(part.value) for part in self.path if isinstance(part, Literal))


Expression = Literal | Call | Lookup


def parse(source: str) -> Expression:
    """Parse an expression.

    Raises:
        ExpressionError: its syntax is wrong. The message continues a sentence about the expression.
    """
    reader = _Reader(source)
    expression = reader.expression()
    reader.end()
    return expression


def lookups(expression: Expression) -> Iterator[Lookup]:
    """Yield every value that an expression looks up."""
    if isinstance(expression, Lookup):
        yield expression
        for part in expression.path:
            yield from lookups(part)
    elif isinstance(expression, Call):
        for argument in expression.arguments:
            yield from lookups(argument)


def functions(expression: Expression) -> Iterator[str]:
    """Yield the name of every function that an expression calls, in lower case."""
    if isinstance(expression, Call):
        yield expression.name
        for argument in expression.arguments:
            yield from functions(argument)
    elif isinstance(expression, Lookup):
        for part in expression.path:
            yield from functions(part)


class _Reader:
    """A recursive-descent parser: a text, a number, a constant, a call, or a path."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = list(self._split(source))
        self._at = 0

    def _split(self, source: str) -> Iterator[tuple[str, str]]:
        position = 0
        while source[position:].strip():
            match = _TOKEN.match(source, position)
            if not match:
                raise ExpressionError(f"cannot be read from {source[position:].strip()[:20]!r} on")
            yield str(match.lastgroup), match[str(match.lastgroup)]
            position = match.end()

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise ExpressionError(f"ends too early: {self._source.strip()!r}")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, mark: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("mark", mark):
            self._at += 1
            return True
        return False

    def _need(self, mark: str) -> None:
        if not self._take(mark):
            raise ExpressionError(f"lacks {mark!r}: {self._source.strip()!r}")

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise ExpressionError(f"has something after its end: {self._source.strip()!r}")

    def expression(self) -> Expression:
        kind, token = self._next()
        if kind == "text":
            return Literal(token[1:-1].replace("''", "'"))
        if kind == "number":
            return Literal(float(token) if "." in token else int(token))
        if kind != "name":
            raise ExpressionError(f"has {token!r} where a value belongs: {self._source.strip()!r}")
        if self._take("("):
            return Call(token.lower(), tuple(self._arguments()))
        constants = {"true": True, "false": False, "null": None}
        if token.lower() in constants:
            return Literal(constants[token.lower()])
        return self._path(token)

    def _arguments(self) -> Iterator[Expression]:
        if self._take(")"):
            return
        while True:
            yield self.expression()
            if self._take(")"):
                return
            self._need(",")

    def _path(self, first: str) -> Lookup:
        path: list[Expression] = [Literal(first)]
        while True:
            if self._take("."):
                path.append(Literal(self._next()[1]))
            elif self._take("["):
                path.append(self.expression())
                self._need("]")
            else:
                return Lookup(tuple(path))


Function = Callable[..., object]


def evaluate(expression: Expression, contexts: Mapping[str, Any], functions: Mapping[str, Function]) -> object:
    """Return the value of an expression. ``functions`` are added to those of this module.

    A name that a context lacks is null, as for Azure.

    Raises:
        ExpressionError: a context or function is unknown, or a function does not take its arguments.
    """
    if isinstance(expression, Literal):
        return expression.value
    if isinstance(expression, Call):
        return _call(expression, contexts, functions)
    head, *rest = [evaluate(part, contexts, functions) for part in expression.path]
    if head not in contexts:
        raise ExpressionError(f"there is no context {head!r} here; there are: {', '.join(sorted(contexts))}")
    value: object = contexts[str(head)]
    for name in rest:
        value = _member(value, name)
    return value


def _member(value: object, name: object) -> object:
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        # Names of variables are not case-sensitive.
        return next((member for key, member in value.items() if str(key).lower() == str(name).lower()), None)
    if isinstance(value, list) and isinstance(name, int) and name < len(value):
        return value[name]
    return None


def _call(call: Call, contexts: Mapping[str, Any], functions: Mapping[str, Function]) -> object:
    function = functions.get(call.name) or KNOWN.get(call.name)
    if not function:
        raise ExpressionError(f"the function {call.name}() is not known here")
    try:
        return function(*(evaluate(argument, contexts, functions) for argument in call.arguments))
    except TypeError as error:
        raise ExpressionError(f"{call.name}() does not take these arguments: {error}") from None


def truth(value: object) -> bool:
    """Return the value as a condition takes it: null, false, 0 and the empty text are false."""
    return bool(value)


def equal(left: object, right: object) -> bool:
    """Compare as Azure does: texts without case, and the right side converted to the type of the left one."""
    return _plain(left) == _plain(right)


def _plain(value: object) -> str:
    return "" if value is None else str(value).lower()


KNOWN: Mapping[str, Function] = {
    "and": lambda *values: all(truth(value) for value in values),
    "or": lambda *values: any(truth(value) for value in values),
    "not": lambda value: not truth(value),
    "eq": equal,
    "ne": lambda left, right: not equal(left, right),
    "in": lambda value, *among: any(equal(value, one) for one in among),
    "startswith": lambda value, start: _plain(value).startswith(_plain(start)),
}
