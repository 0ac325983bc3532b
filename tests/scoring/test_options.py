"""The tasks declare the options of the scoring server as the server itself reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ml_service.config import Settings
from ml_service.config.fields import declared
from ml_service.config.scoring import ScoringSettings, requires_key
from ml_service.errors import MlopsError
from scoring_service.errors import StartError
from scoring_service.settings import Settings as ServerSettings
from tests.support.sources import ROOT

SET_BY_TARGETS = {"package", "host", "port", "socket", "keys_file"}
WORDS = ["on", "off", "ON", "OFF", "Off", " off ", "", "true", "True", "false", "False", "yes", "no", "1", "0", "o"]
NUMBERS = [
    "-1",
    "0",
    "0.001",
    "0.01",
    "0.1",
    "0.5",
    "1",
    "64",
    "65",
    "3600",
    "3601",
    "1e3",
    "1e999",
    "nan",
    "many",
    "²",
]
OPTIONS = declared(ScoringSettings)


def of_server(name: str, word: str) -> object:
    """What the server makes of a variable; its error where it refuses it."""
    field = next(field for field, setting in OPTIONS.items() if setting.name == name)
    try:
        return getattr(ServerSettings.from_env({"AZUREML_MODEL_DIR": "/p", name: word}), field)
    except StartError:
        return "refused"


def of_tasks(name: str, word: str) -> object:
    """What the tasks make of it."""
    field = next(field for field, setting in OPTIONS.items() if setting.name == name)
    try:
        return getattr(Settings.from_env({name: word}, ROOT).scoring, field)
    except MlopsError as error:
        assert error.where == name
        return "refused"


@pytest.mark.parametrize("name", ["SCORING_AUTH", "SCORING_LOG_REQUESTS"])
@pytest.mark.parametrize("word", WORDS)
def test_both_read_the_same_words(name: str, word: str) -> None:
    """A word that the server refuses is refused before anything is deployed."""
    assert of_tasks(name, word) == of_server(name, word)


@pytest.mark.parametrize("word", WORDS)
def test_a_target_asks_for_a_key_when_its_server_does(word: str) -> None:
    """A server with a word that it refuses never serves, so the answer does not matter there: a key is asked for."""
    assert requires_key({"SCORING_AUTH": word}) == bool(of_server("SCORING_AUTH", word))


@pytest.mark.parametrize("name", sorted(setting.name for setting in OPTIONS.values() if "number" in setting.expected))
@pytest.mark.parametrize("text", NUMBERS)
def test_both_read_the_same_numbers(name: str, text: str) -> None:
    """The same text has the same value, within the same limits. The tasks deploy at most 64 workers."""
    if (name, text) != ("SCORING_WORKERS", "65"):
        assert of_tasks(name, text) == of_server(name, text)


def test_both_have_the_same_options_and_defaults() -> None:
    """All but what each target decides for itself."""
    server, tasks = ServerSettings(package=Path("/p")), ScoringSettings()
    options = {field.name for field in dataclasses.fields(server)} - SET_BY_TARGETS
    assert {name: getattr(tasks, name) for name in OPTIONS} == {name: getattr(server, name) for name in options}
