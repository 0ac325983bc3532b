"""Expand templates: turn the files into the one document that Azure runs.

The order of evaluation is Azure's, and it matters, because an expression sees only what was known before it:

1. The pipeline's parameters are bound (given values, else defaults) and checked against their declarations. They are
   the only context of ``${{ … }}`` here: variables get their values when the run starts.
2. The document is walked from the top. In a mapping or sequence, directives come first: ``if``, ``elseif`` and ``else``
   that follow one another are one chain, of which the first branch that holds is taken, and branches that are not taken
   are never evaluated. ``each`` repeats its body with its variable bound. ``insert`` merges a mapping.
3. The remaining values are evaluated. A value that is one whole expression keeps its type, so that a list or mapping
   can be passed on; an expression inside a text becomes text.
4. In the sections that may hold templates, each ``template:`` is replaced by that section of its file, expanded in the
   same way with the parameters that step 3 has evaluated, and with no other context of the caller.

Source: https://learn.microsoft.com/azure/devops/pipelines/process/template-expressions
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tools.azure_pipelines.expressions import ExpressionError, evaluate, lookups, parse, truth
from tools.azure_pipelines.source import List, Map, PipelineError, Place, Text, load, place_of, text

_EXPRESSION = re.compile(r"\$\{\{((?:(?!\}\}).)*)\}\}", re.DOTALL)
_DIRECTIVE = re.compile(r"\$\{\{\s*(if|elseif|else|each|insert)\b(.*)\}\}\s*$", re.DOTALL)
_SECTIONS = ("stages", "jobs", "steps", "variables")


@dataclass(frozen=True)
class Scope:
    """The contexts that an expression can read, and the file that it stands in."""

    folder: Path
    file: str
    contexts: Mapping[str, Any]
    read: set[str] = field(default_factory=set)
    """Collects the name of every file that was read."""

    def within(self, **more: object) -> Scope:
        """Return this scope with more contexts."""
        return Scope(self.folder, self.file, {**self.contexts, **more}, self.read)


def expand(folder: Path, name: str, parameters: Mapping[str, Any] | None = None) -> tuple[Map, set[str]]:
    """Return the expanded pipeline ``folder/name``, and the names of the files that it is made of.

    Raises:
        PipelineError: something is wrong, with its place.
    """
    document = load(folder, name)
    scope = Scope(folder, name, {"variables": {}}, {name})
    bound = _parameters(document, parameters or {}, scope, document.place)
    body = Map((key, value) for key, value in document.items() if key != "parameters")
    expanded = _value(body, scope.within(parameters=bound))
    assert isinstance(expanded, Map)
    expanded.place = document.place
    return expanded, scope.read


def _parameters(document: Map, arguments: Mapping[str, Any], scope: Scope, caller: Place) -> dict[str, Any]:
    declared = {str(one["name"]): one for one in document.get("parameters", [])}
    for name, value in arguments.items():
        if name not in declared:
            raise PipelineError(f"{scope.file} has no parameter {str(name)!r}", place_of(name, caller))
        allowed = declared[name].get("values")
        if allowed and value not in allowed:
            raise PipelineError(f"{str(value)!r} is not allowed for {str(name)!r}", place_of(value, caller))
    values: dict[str, Any] = {}
    for name, one in declared.items():
        if name not in arguments and "default" not in one:
            raise PipelineError(f"{scope.file} needs the parameter {name!r}", caller)
        values[name] = arguments[name] if name in arguments else one["default"]
    return values


# Values


def _value(value: Any, scope: Scope) -> Any:
    if isinstance(value, Map):
        mapping = Map(_entries(value, scope))
        mapping.place = place_of(value, Place(scope.file, 1))
        return mapping
    if isinstance(value, List):
        items = List(_items(value, scope))
        items.place = value.place
        return items
    if isinstance(value, Text):
        return _scalar(value, scope)
    return value


def _scalar(value: Text, scope: Scope) -> Any:
    whole = _EXPRESSION.fullmatch(value)
    if whole:
        result = _evaluated(whole[1], scope, value.place)
        return text(result, value.place) if isinstance(result, str | bool | int | float) else result
    filled = _EXPRESSION.sub(lambda match: str(_evaluated(match[1], scope, value.place)), value)
    return text(filled, value.place)


def _evaluated(source: str, scope: Scope, place: Place) -> Any:
    result = _result(source, scope, place)
    if result is None:
        raise PipelineError(f"${{{{{source}}}}} has no value", place)
    return result


def _result(source: str, scope: Scope, place: Place) -> object:
    try:
        expression = parse(source)
        for context, *names in (lookup.names for lookup in lookups(expression)):
            # Azure takes an undeclared parameter for null, and an ``if`` then silently takes the other branch.
            if context == "parameters" and names and names[0] not in scope.contexts["parameters"]:
                raise ExpressionError(f"reads the parameter {names[0]!r}, which {scope.file} does not declare")
        return evaluate(expression, scope.contexts, {})
    except ExpressionError as error:
        raise PipelineError(f"${{{{{source}}}}} {error}", place) from None


def _entries(mapping: Map, scope: Scope) -> Iterator[tuple[Text, Any]]:
    chain = _Chain(scope)
    for key, value in mapping.items():
        assert isinstance(key, Text)
        directive = _DIRECTIVE.fullmatch(key)
        if not directive:
            chain.ends()
            yield _key(key, scope), _section(key, value, scope)
        elif directive[1] == "insert":
            yield from _merged(_value(value, scope), key)
        elif chain.takes(directive, key.place):
            yield from _merged(_value(value, scope), key)


def _key(key: Text, scope: Scope) -> Text:
    evaluated = _scalar(key, scope)
    assert isinstance(evaluated, Text)
    return evaluated


def _merged(value: Any, key: Text) -> Iterator[tuple[Text, Any]]:
    if not isinstance(value, Map):
        raise PipelineError("only a mapping can be inserted into a mapping", key.place)
    yield from value.items()  # type: ignore[misc]


def _section(key: Text, value: Any, scope: Scope) -> Any:
    """Return the value of an entry. Sections may hold templates; everything else is a plain value."""
    if key in _SECTIONS and isinstance(value, List):
        section = List(_templated(_items(value, scope), key, scope))
        section.place = value.place
        return section
    return _value(value, scope)


def _items(items: List, scope: Scope) -> Iterator[Any]:
    chain = _Chain(scope)
    for item in items:
        key: Any = next(iter(item)) if isinstance(item, Map) and len(item) == 1 else None
        directive = _DIRECTIVE.fullmatch(key) if key is not None else None
        if not directive:
            chain.ends()
            yield _value(item, scope)
        elif directive[1] == "each":
            yield from _each(directive[2], item[key], scope, key.place)
        elif chain.takes(directive, key.place):
            yield from _listed(item[key], scope, key.place)


def _each(source: str, body: Any, scope: Scope, place: Place) -> Iterator[Any]:
    name, _, expression = source.strip().partition(" in ")
    among = _evaluated(expression, scope, place)
    for one in among:
        yield from _listed(body, scope.within(**{name.strip(): one}), place)


def _listed(body: Any, scope: Scope, place: Place) -> Iterator[Any]:
    if not isinstance(body, List):
        raise PipelineError("only a sequence can be inserted into a sequence", place)
    yield from _items(body, scope)


class _Chain:
    """A chain ``if … elseif … else``. At most one of its branches is taken."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._open = False
        self._taken = False

    def ends(self) -> None:
        """End the chain: a branch that comes after another entry must begin with ``if``."""
        self._open = False

    def takes(self, directive: re.Match[str], place: Place) -> bool:
        """Return whether this branch is taken.

        Raises:
            PipelineError: it is not part of a chain, or its condition cannot be evaluated.
        """
        word = directive[1]
        if word == "if":
            self._open, self._taken = True, False
        elif not self._open:
            raise PipelineError(f"{word} without if", place)
        taken = not self._taken and (word == "else" or truth(_result(directive[2], self._scope, place)))
        self._taken = self._taken or taken
        return taken


# Templates


def _templated(items: Iterator[Any], section: str, scope: Scope) -> Iterator[Any]:
    for item in items:
        if isinstance(item, Map) and "template" in item:
            yield from _included(item, section, scope)
        else:
            yield item


def _included(item: Map, section: str, scope: Scope) -> Iterator[Any]:
    path = PurePosixPath(scope.file).parent / item["template"]
    place = place_of(item["template"], item.place)
    if not (scope.folder / path).is_file():
        raise PipelineError(f"there is no template {path}", place)
    document = load(scope.folder, str(path))
    scope.read.add(str(path))
    inner = Scope(scope.folder, str(path), {"variables": {}}, scope.read)
    parameters = _parameters(document, item.get("parameters", {}), inner, item.place)
    if unknown := [key for key in document if key not in ("parameters", section)]:
        raise PipelineError(f"a template of {section} holds no {unknown[0]!r}", place_of(unknown[0], place))
    body = _section(text(section, place), document[section], inner.within(parameters=parameters))
    yield from body
