"""Check every pipeline in a folder against the rules and the official schema."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.azure_pipelines.expand import expand
from tools.azure_pipelines.model import Pipeline, read
from tools.azure_pipelines.rules import RULES
from tools.azure_pipelines.rules.subject import ParseTask, Problem, Subject
from tools.azure_pipelines.schema import Schema, official
from tools.azure_pipelines.source import PipelineError, Place, load

_NAMES = re.compile(r"^#?([A-Z][A-Z0-9_]*)=", re.MULTILINE)


def pipeline_files(folder: Path) -> list[str]:
    """Return the names of the pipelines in a folder: every file with stages."""
    names = [path.name for path in sorted(folder.glob("*.yml"))]
    return [name for name in names if "stages" in _loaded(folder, name)]


def _loaded(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        return load(folder, name)
    except PipelineError:
        return {"stages": "unreadable: expanding it says why"}


def check(folder: Path, settings_example: Path, parse_task: ParseTask) -> list[Problem]:
    """Return everything that is wrong with the pipelines in ``folder``, by file and line.

    Args:
        folder: the pipelines, with their templates below it.
        settings_example: the file that names every setting.
        parse_task: returns the task that the words after ``inv`` call.

    Each pipeline is checked once for each value that a parameter with listed values may have.

    Raises:
        ConfigurationError: the official schema is not installed.
    """
    settings = frozenset(_NAMES.findall(settings_example.read_text(encoding="utf-8")))
    schema = official()
    parse_once: ParseTask = functools.cache(parse_task)
    # A dict and not a set, so that the order is that of the files.
    problems: dict[Problem, None] = {}
    read_files: set[str] = set()
    for name in pipeline_files(folder):
        for parameters in _choices(folder, name):
            try:
                raw, files = expand(folder, name, parameters)
                read_files |= files
                pipeline = read(name, raw)
            except PipelineError as error:
                problems[Problem(error.place, error.message)] = None
                continue
            problems.update(dict.fromkeys(_by_rules(Subject(pipeline, settings, parse_once))))
            problems.update(dict.fromkeys(_by_schema(schema, pipeline)))
    every = [*problems, *_unused_templates(folder, read_files)]
    return sorted(every, key=lambda problem: (problem.place.file, problem.place.line))


def _choices(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the parameters to expand a pipeline with: the defaults, and each listed value once."""
    choices: list[dict[str, Any]] = [{}]
    for parameter in _loaded(folder, name).get("parameters", []):
        if not isinstance(parameter, Mapping):
            continue
        choices += [{str(parameter["name"]): value} for value in parameter.get("values", [])[1:]]
        if parameter.get("default") == "latest":
            choices.append({str(parameter["name"]): "4711"})
    return choices


def _by_rules(subject: Subject) -> Iterator[Problem]:
    for rule in RULES:
        yield from rule(subject)


def _by_schema(schema: Schema, pipeline: Pipeline) -> Iterator[Problem]:
    return (Problem(place, message) for place, message in schema.problems(pipeline))


def _unused_templates(folder: Path, read_files: Collection[str]) -> Iterator[Problem]:
    for path in sorted(folder.rglob("*.yml")):
        name = path.relative_to(folder).as_posix()
        if name not in read_files and "stages" not in (_loaded(folder, name) if "/" not in name else {}):
            yield Problem(Place(name, 1), "no pipeline uses this template")
