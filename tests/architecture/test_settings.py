"""Every setting is explained, and every explanation is of a setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_service.config import Settings
from tests.support.sources import ROOT


class Recorder(dict[str, str]):
    """An environment that remembers what was asked of it."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """Answer like a dict, and remember."""
        self.asked.add(name)
        return super().get(name, default)


def settings_read() -> set[str]:
    """The variables that ``Settings`` reads."""
    environment = Recorder({})
    Settings.from_env(environment, ROOT)
    return environment.asked


def example(path: Path = ROOT / ".env.example") -> dict[str, str]:
    """Each variable of .env.example with the value shown; one that is off by default stands behind a ``#``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {m[1]: m[2] for line in lines if (m := re.fullmatch(r"#?([A-Z][A-Z0-9_]*)=(.*)", line))}


def test_the_example_names_every_setting_and_no_other() -> None:
    """A person who reads .env.example has seen every setting there is."""
    assert set(example()) == settings_read()


def test_the_example_can_be_used_as_it_is() -> None:
    """Copied to .env unchanged, it changes nothing."""
    shown = Settings.from_env(example(), ROOT)
    default = Settings.from_env({}, ROOT)
    fields = [name for name in default.__dataclass_fields__ if name != "env"]
    assert {name: getattr(shown, name) for name in fields} == {name: getattr(default, name) for name in fields}


@pytest.mark.parametrize("name", sorted(example()))
def test_every_setting_is_explained(name: str) -> None:
    """Above each variable, or each group of them, stands a comment."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    paragraph = next(part for part in text.split("\n\n") if re.search(rf"^#?{name}=", part, re.MULTILINE))
    assert re.match(r"# [A-Za-z]", paragraph)
