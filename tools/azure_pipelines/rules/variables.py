"""Variables: what is read is defined, what is defined is read, and an environment holds settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tools.azure_pipelines.rules.subject import Problem, Subject
from tools.azure_pipelines.source import place_of

ONLY_FOR_PYTHON = frozenset({"PYTHONUNBUFFERED"})

_MACRO = re.compile(r"\$\(([A-Za-z_][\w.]*)\)")


def macros_are_defined(subject: Subject) -> Iterator[Problem]:
    """Every ``$(NAME)`` names a variable: Azure would pass on the text as it is."""
    raw = subject.pipeline.raw
    # The run's number (``name``) has a language of its own.
    for value in _scalars({key: value for key, value in raw.items() if key != "name"}):
        for name in _MACRO.findall(str(value)):
            if not subject.defines(name):
                yield Problem(place_of(value, raw.place), f"nothing defines the variable {name!r}")


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _scalars(inner)
    else:
        yield value


def environments_are_settings(subject: Subject) -> Iterator[Problem]:
    """A step's ``env`` has no name that no task reads."""
    for step in subject.pipeline.steps:
        for name in step.env:
            if name not in subject.settings and name not in ONLY_FOR_PYTHON:
                yield Problem(place_of(name, step.place), f"no task reads {name!r} from the environment")


def are_read(subject: Subject) -> Iterator[Problem]:
    """A variable is a setting, or some line reads it: otherwise it is most likely misspelt."""
    text = repr(subject.pipeline.raw)
    for name, place in subject.variables.items():
        if name not in subject.settings and f"$({name})" not in text and f"variables['{name}']" not in text:
            yield Problem(place, f"nothing reads the variable {name!r}, and it is not a setting of the tasks")
