"""Load YAML with the place of each value, so that a problem names its file and line.

Every scalar is text, as it is to Azure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Place:
    """A line of a file; ``file`` is relative to the folder of the pipelines."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class PipelineError(Exception):
    """Something that Azure would refuse, or that these tools do not know, with its place."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


class Text(str):
    """A scalar."""

    place: Place


class Map(dict[str, Any]):
    """A mapping; its keys are ``Text``."""

    place: Place


class List(list[Any]):
    """A sequence."""

    place: Place


def place_of(value: object, otherwise: Place) -> Place:
    """Return where ``value`` was written, or ``otherwise`` for a value that is not from a file."""
    place = getattr(value, "place", otherwise)
    assert isinstance(place, Place)
    return place


def text(value: object, place: Place) -> Text:
    """Return ``value`` as a scalar written at ``place``; booleans as Azure writes them."""
    scalar = Text(str(value))
    scalar.place = place
    return scalar


def load(folder: Path, name: str) -> Map:
    """Load the file ``folder/name``.

    Raises:
        PipelineError: it cannot be read, or is not a YAML mapping.
    """
    try:
        content = (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise PipelineError(f"the file cannot be read: {error.strerror}", Place(name, 1)) from None
    return _parsed(content, name)


@lru_cache(maxsize=256)
def _parsed(content: str, name: str) -> Map:
    """Parse a file once for all pipelines that include it. Expanding makes new values and changes none."""
    try:
        node = yaml.compose(content, Loader=yaml.CBaseLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PipelineError(f"not YAML: {error.problem}", Place(name, line)) from None
    built = _build(node, name) if node else None
    if not isinstance(built, Map):
        raise PipelineError("not a mapping; expected KEY: VALUE lines", Place(name, 1))
    return built


def _build(node: yaml.Node, file: str) -> Map | List | Text:
    place = Place(file, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, file, place)
    if isinstance(node, yaml.SequenceNode):
        items = List(_build(item, file) for item in node.value)
        items.place = place
        return items
    return text(node.value, place)


def _mapping(node: yaml.MappingNode, file: str, place: Place) -> Map:
    built = Map()
    built.place = place
    for key_node, value_node in node.value:
        key = _build(key_node, file)
        if not isinstance(key, Text):
            raise PipelineError("a key is not a scalar", place)
        if key in built:
            raise PipelineError(f"the key {key!r} appears twice", key.place)
        built[key] = _build(value_node, file)
    return built
