"""The official schema of Azure Pipelines, as the package check-jsonschema carries it.

It is applied in parts. As a whole it takes seconds, and its one message is "not valid under any of the given schemas".
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ml_service.errors import ConfigurationError
from ml_service.hide_module import hidden
from tools.azure_pipelines.model import Pipeline, Step
from tools.azure_pipelines.source import Place, place_of

FALSE_ALARMS: Mapping[str, frozenset[str]] = {
    "PublishCodeCoverageResults@2": frozenset({"summaryFileLocation", "pathToSources", "failIfCoverageEmpty"}),
    "ms-air-aiagility.vss-services-azureml.azureml-restApi-task.MLPublishedPipelineRestAPITask@0": frozenset(
        {"azureSubscription", "PipelineId", "ExperimentName", "PipelineParameters"}
    ),
}
"""Tasks that exist and that the schema does not know, with the inputs that are allowed here.

The schema also refuses a variables template by itself. That is checked as part of the pipelines that use it.
"""


@functools.cache
def official() -> Schema:
    """Return the schema, which is read once.

    Raises:
        ConfigurationError: check-jsonschema is not installed.
    """
    return Schema()


class Schema:
    """The schema, and its verdicts so far.

    Raises:
        ConfigurationError: check-jsonschema is not installed.
    """

    def __init__(self) -> None:
        try:
            validator = _draft7()
            self._schema = json.loads(_schema_file().read_bytes())
        except (ImportError, OSError) as error:
            raise ConfigurationError(
                f"the schema of Azure Pipelines is not here ({error})",
                where="check-jsonschema",
                next_step="pip install --require-hashes -r requirements/ci.txt",
            ) from None
        self._validator = validator
        self._whole = validator(self._schema)
        # Most steps are in every pipeline, and most pipelines are the same for each choice of their parameters.
        self._steps: dict[str, list[str]] = {}
        self._frames: dict[str, list[tuple[Sequence[str | int], str]]] = {}

    def problems(self, pipeline: Pipeline) -> Iterator[tuple[Place, str]]:
        """Yield the schema's complaints about a pipeline: first about its frame, then about each of its steps."""
        for path, message in self._of_frame(_frame(pipeline.raw)):
            yield _place(pipeline.raw, path, Place(pipeline.file, 1)), f"the official schema says: {message}"
        for step in pipeline.steps:
            key = json.dumps(step.raw)
            if key not in self._steps:
                self._steps[key] = list(self._step(step))
            yield from ((step.place, message) for message in self._steps[key])

    def _of_frame(self, frame: Any) -> list[tuple[Sequence[str | int], str]]:
        key = json.dumps(frame)
        if key not in self._frames:
            deepest = [_deepest(error) for error in self._whole.iter_errors(frame)]
            self._frames[key] = [(list(error.absolute_path), _short(error.message)) for error in deepest]
        return self._frames[key]

    def _step(self, step: Step) -> Iterator[str]:
        if "task" not in step.raw:
            kinds = self._kinds("step", step.task)
            yield from self._against(kinds, step.raw)
        elif step.task in FALSE_ALARMS:
            unknown = sorted(set(step.inputs) - FALSE_ALARMS[step.task])
            yield from (f"{step.task} has no input {name!r}" for name in unknown)
        else:
            kinds = [
                kind
                for kind in self._schema["definitions"]["task"]["anyOf"]
                if re.match(kind["properties"]["task"].get("pattern", "$^"), step.task)
            ]
            yield from self._against(kinds, _typed(step.raw)) if kinds else [f"there is no task {step.task!r}"]

    def _kinds(self, definition: str, first: str) -> list[Any]:
        return [
            kind
            for kind in self._schema["definitions"][definition]["anyOf"]
            if kind.get("firstProperty", [""])[0] == first
        ]

    def _against(self, kinds: list[Any], value: Any) -> Iterator[str]:
        for kind in kinds:
            schema = {**kind, "definitions": self._schema["definitions"]}
            errors = list(self._validator(schema).iter_errors(value))
            if not errors:
                return
        if not kinds:
            yield "there is no such step"
            return
        for error in errors:
            deepest = _deepest(error)
            path = ".".join(str(part) for part in deepest.absolute_path)
            yield f"the official schema says: {path + ': ' if path else ''}{_short(deepest.message)}"


def _draft7() -> Any:
    """Import the validator without the grammars that jsonschema builds for addresses, which takes it seconds.

    It needs them to check formats only, and no format is checked here.
    """
    with hidden("rfc3987_syntax"):
        from jsonschema import Draft7Validator  # type: ignore[import-untyped]
    return Draft7Validator


def _schema_file() -> Path:
    """Return the schema's file without importing check_jsonschema, whose command line takes a third of a second."""
    spec = find_spec("check_jsonschema")
    if not spec or not spec.origin:
        raise ImportError("check-jsonschema is not installed")
    return Path(spec.origin).parent / "builtin_schemas" / "vendor" / "azure-pipelines.json"


def _frame(value: Any, key: str = "") -> Any:
    """Return the document with each list of steps replaced by the shortest one: steps are checked one by one."""
    if key == "steps":
        return [{"script": "inv"}]
    if isinstance(value, Mapping):
        return {str(name): _frame(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_frame(item) for item in value]
    return str(value)


def _typed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step with booleans among its inputs: the schema wants them there, and texts everywhere else."""
    typed = {name: {"true": True, "false": False}.get(str(value), value) for name, value in raw["inputs"].items()}
    return {**raw, "inputs": typed} if raw.get("inputs") else dict(raw)


def _deepest(error: Any) -> Any:
    """Return the cause that lies deepest in the document: the outer ones only say that no alternative fits."""
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    return error


def _place(value: Any, path: Any, otherwise: Place) -> Place:
    place = otherwise
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            break
        place = place_of(value, place)
    return place


def _short(message: str) -> str:
    return message if len(message) <= 160 else f"{message[:70]} … {message[-80:]}"
