"""The rules: what Azure would report only while a pipeline runs, and what this project demands of its YAML.

A rule is a function from a ``Subject`` to its problems. To add one, write it into the module of its kind, and list it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tools.azure_pipelines.rules import dependencies, expressions, scripts, surroundings, variables
from tools.azure_pipelines.rules.subject import Problem, Subject

RULES: Sequence[Callable[[Subject], Iterator[Problem]]] = (
    scripts.only_tasks,
    scripts.in_the_order_of_ci,
    dependencies.exist_before,
    variables.macros_are_defined,
    expressions.are_valid,
    variables.environments_are_settings,
    variables.are_read,
    surroundings.tasks_are_signed_in,
    surroundings.scripts_have_an_agent,
    surroundings.groups_are_known,
)
