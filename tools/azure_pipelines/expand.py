"""Templates expanded: what Azure runs, made of the files as they are."""

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
    """What an expression can see, and the file that it stands in."""

    folder: Path
    file: str
    contexts: Mapping[str, Any]
    read: set[str] = field(default_factory=set)
    """Collects the name of every file that took part."""

    def within(self, **more: object) -> Scope:
        """This scope with more contexts."""
        return Scope(self.folder, self.file, {**self.contexts, **more}, self.read)


def expand(folder: Path, name: str, given: Mapping[str, Any] | None = None) -> tuple[Map, set[str]]:
    """The pipeline of ``folder/name`` with the parameters ``given``, and the files that it is made of.

    Raises:
        PipelineError: with the place of what is wrong.
    """
    document = load(folder, name)
    scope = Scope(folder, name, {"variables": {}}, {name})
    parameters = _parameters(document, given or {}, scope, document.place)
    body = Map((key, value) for key, value in document.items() if key != "parameters")
    expanded = _value(body, scope.within(parameters=parameters))
    assert isinstance(expanded, Map)
    expanded.place = document.place
    return expanded, scope.read


def _parameters(document: Map, given: Mapping[str, Any], scope: Scope, caller: Place) -> dict[str, Any]:
    declared = {str(one["name"]): one for one in document.get("parameters", [])}
    for name, value in given.items():
        if name not in declared:
            raise PipelineError(f"{scope.file} has no parameter {str(name)!r}", place_of(name, caller))
        allowed = declared[name].get("values")
        if allowed and value not in allowed:
            raise PipelineError(f"{str(value)!r} is not allowed for {str(name)!r}", place_of(value, caller))
    values: dict[str, Any] = {}
    for name, one in declared.items():
        if name not in given and "default" not in one:
            raise PipelineError(f"{scope.file} needs the parameter {name!r}", caller)
        values[name] = given[name] if name in given else one["default"]
    return values


# Values


def _value(value: Any, scope: Scope) -> Any:
    if isinstance(value, Map):
        made = Map(_entries(value, scope))
        made.place = place_of(value, Place(scope.file, 1))
        return made
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
        found = _evaluated(whole[1], scope, value.place)
        return text(found, value.place) if isinstance(found, str | bool | int | float) else found
    filled = _EXPRESSION.sub(lambda match: str(_evaluated(match[1], scope, value.place)), value)
    return text(filled, value.place)


def _evaluated(source: str, scope: Scope, place: Place) -> Any:
    found = _result(source, scope, place)
    if found is None:
        raise PipelineError(f"${{{{{source}}}}} names nothing that is there", place)
    return found


def _result(source: str, scope: Scope, place: Place) -> object:
    try:
        expression = parse(source)
        for context, *names in (lookup.names for lookup in lookups(expression)):
            # Azure takes it for null, and an if then silently takes the other branch.
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
    made = _scalar(key, scope)
    assert isinstance(made, Text)
    return made


def _merged(value: Any, key: Text) -> Iterator[tuple[Text, Any]]:
    if not isinstance(value, Map):
        raise PipelineError("only a mapping can be inserted into a mapping", key.place)
    yield from value.items()  # type: ignore[misc]


def _section(key: Text, value: Any, scope: Scope) -> Any:
    """Sections may hold templates; everything else is a value."""
    if key in _SECTIONS and isinstance(value, List):
        made = List(_templated(_items(value, scope), key, scope))
        made.place = value.place
        return made
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
    """One ``if … elseif … else`` after another: which branch is taken."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._open = False
        self._taken = False

    def ends(self) -> None:
        """Something else stands between: what follows must begin with ``if``."""
        self._open = False

    def takes(self, directive: re.Match[str], place: Place) -> bool:
        """Whether this branch is the one."""
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
