"""Templates are expanded as Azure does it, and what Azure would refuse is refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.azure_pipelines.expand import expand
from tools.azure_pipelines.expressions import ExpressionError, evaluate, parse
from tools.azure_pipelines.source import PipelineError


def expanded(folder: Path, main: str, given: dict[str, Any] | None = None, **templates: str) -> Any:
    """The pipeline ``main`` with the files ``NAME.yml`` beside it."""
    for name, content in {"main": main, **templates}.items():
        (folder / f"{name}.yml").write_text(content)
    return expand(folder, "main.yml", given)[0]


def test_a_template_gets_its_parameters_and_their_defaults(tmp_path: Path) -> None:
    """What is given replaces the default; an object stays an object."""
    steps = """
parameters: [{name: run}, {name: env, default: {A: '1'}}]
steps: [{script: '${{ parameters.run }}', env: '${{ parameters.env }}'}]
"""
    found = expanded(tmp_path, "steps: [{template: steps.yml, parameters: {run: inv lint}}]", steps=steps)
    assert found["steps"] == [{"script": "inv lint", "env": {"A": "1"}}]


def test_only_the_branch_that_holds_is_kept(tmp_path: Path) -> None:
    """if, elseif and else, among items and among keys."""
    main = """
parameters: [{name: on, default: b}]
steps:
- ${{ if eq(parameters.on, 'a') }}:
  - script: a
- ${{ elseif eq(parameters.on, 'b') }}:
  - script: b
    ${{ if eq(parameters.on, 'a') }}:
      name: a
    ${{ else }}:
      name: b
- ${{ else }}:
  - script: c
"""
    assert expanded(tmp_path, main)["steps"] == [{"script": "b", "name": "b"}]
    assert expanded(tmp_path, main, {"on": "x"})["steps"] == [{"script": "c"}]


def test_each_repeats_and_insert_merges(tmp_path: Path) -> None:
    """A list into a list, a mapping into a mapping."""
    main = """
parameters: [{name: names, default: [x, y]}, {name: env, default: {B: '2'}}]
steps:
- ${{ each one in parameters.names }}:
  - script: run ${{ one }}
    env:
      A: '1'
      ${{ insert }}: ${{ parameters.env }}
"""
    assert expanded(tmp_path, main)["steps"] == [
        {"script": "run x", "env": {"A": "1", "B": "2"}},
        {"script": "run y", "env": {"A": "1", "B": "2"}},
    ]


def test_paths_of_templates_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    """A template in a folder finds its neighbour there."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "outer.yml").write_text("jobs: [{job: J, steps: [{template: inner.yml}]}]")
    (tmp_path / "in" / "inner.yml").write_text("steps: [{script: inv lint}]")
    found = expanded(tmp_path, "jobs: [{template: in/outer.yml}]")
    assert found["jobs"] == [{"job": "J", "steps": [{"script": "inv lint"}]}]


@pytest.mark.parametrize(
    "main, message, line",
    [
        ("steps:\n- template: none.yml", "there is no template none.yml", 2),
        ("steps:\n- script: ${{ parameters.x }}", "does not declare", 2),
        ("steps:\n- script: ${{ what() }}", "what() is not known", 2),
        ("steps:\n- ${{ else }}:\n  - script: x", "else without if", 2),
        ("steps:\n- script: x\n  script: y", "appears twice", 3),
        ("steps: [}", "not YAML", 1),
        ("- a", "not a mapping", 1),
    ],
)
def test_what_azure_would_refuse_is_refused_with_its_line(tmp_path: Path, main: str, message: str, line: int) -> None:
    """The file, the line and the reason."""
    with pytest.raises(PipelineError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        expanded(tmp_path, main)
    assert (caught.value.place.file, caught.value.place.line) == ("main.yml", line)


def test_parameters_are_held_to_their_declaration(tmp_path: Path) -> None:
    """One that is unknown, missing, or not among the listed values."""
    steps = "parameters: [{name: run, values: [a, b]}]\nsteps: [{script: '${{ parameters.run }}'}]"
    refused = {"rum: a": "no parameter 'rum'", "run: c": "'c' is not allowed", "": "needs the parameter"}
    for given, message in refused.items():
        with pytest.raises(PipelineError, match=message):
            expanded(tmp_path, f"steps: [{{template: steps.yml, parameters: {{{given}}}}}]", steps=steps)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("and(eq(variables['A'], 'X'), not(eq(variables.B, 'x')))", True),
        ("in(dependencies.S.result, 'Skipped', 'Succeeded')", True),
        ("ne(variables['NONE'], '')", False),
        ("eq(dependencies.S.outputs['J.s.v'], 'it''s')", True),
        ("or(false, eq(1, '1'))", True),
    ],
)
def test_conditions_are_evaluated_as_azure_does(source: str, expected: bool) -> None:
    """Texts without regard to case; what is not there is null, and null equals the empty text."""
    stage = {"result": "succeeded", "outputs": {"J.s.v": "it's"}}
    contexts = {"variables": {"A": "x", "B": "y"}, "dependencies": {"S": stage}}
    assert evaluate(parse(source), contexts, {}) is expected


@pytest.mark.parametrize("source", ["", "eq(", "eq(1,2", "eq(1,2) x", "'open", "a..b(", "eq(1)", ")"])
def test_what_is_no_expression_is_said_so(source: str) -> None:
    """No crash, whatever stands there."""
    with pytest.raises(ExpressionError):
        evaluate(parse(source), {"a": {}}, {})
