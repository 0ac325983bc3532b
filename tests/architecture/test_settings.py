"""What explains the settings is generated from their declarations, and explains each."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from ml_service.config import SECTIONS, CoreSettings, Settings
from ml_service.config.fields import Setting, declared
from tests.support.sources import ROOT
from tools import settings_reference

DECLARED = [setting for section in (CoreSettings, *SECTIONS.values()) for setting in declared(section).values()]


def test_the_example_can_be_used_as_it_is() -> None:
    """Copied to .env unchanged, it changes nothing, also with the lines that are switched off."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    shown = Settings.from_env(dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE)), ROOT)
    default = Settings.from_env({}, ROOT)
    names = [field.name for field in fields(Settings) if field.name != "env"]
    assert {name: getattr(shown, name) for name in names} == {name: getattr(default, name) for name in names}


def test_what_is_generated_is_what_is_declared() -> None:
    """Each setting has a line of .env.example, and each section but the core a table in docs/."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    assert example == settings_reference.example()
    assert pages == [settings_reference.rendered(page) for page in pages]
    assert set(re.findall(r"^<!-- settings ([a-z]+) -->$", "".join(pages), re.MULTILINE)) == set(SECTIONS)


def test_a_changed_table_is_noticed() -> None:
    """What somebody writes between the markers by hand is not what is generated."""
    page = (ROOT / "docs" / "aks.md").read_text(encoding="utf-8")
    changed = page.replace("| `AKS_CPU` | 0.5 |", "| `AKS_CPU` | 0.7 |")
    assert changed != page
    assert settings_reference.rendered(changed) == page


@pytest.mark.parametrize("setting", DECLARED, ids=lambda setting: setting.name)
def test_every_setting_is_declared_once_and_explained(setting: Setting) -> None:
    """One declaration a variable, with a help that ends as a sentence does."""
    assert [other.name for other in DECLARED].count(setting.name) == 1
    assert setting.help.endswith(".")
