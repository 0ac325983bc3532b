"""Declare a setting once: its variable, default, range, unit and help are in the metadata of a dataclass field.

``read`` makes a section of the settings from an environment.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ml_service.errors import ConfigurationError

_SETTING = "setting"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

Section = TypeVar("Section")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The declaration of one setting.

    ``convert`` turns the text of the variable into its value and raises ValueError unless it is what ``expected`` says.
    ``default`` is the text that counts when the variable is not set. With ``from_project`` that is the project's name
    with dashes. Where another setting decides, ``fallback`` says so in words.
    """

    name: str
    help: str
    convert: Callable[[str], Any] = str
    expected: str = ""
    advice: str = ""
    default: str = ""
    unit: str = ""
    fallback: str = ""
    from_project: bool = False
    is_secret: bool = False

    def value(self, text: str) -> Any:
        """Return the value that ``text`` means.

        Raises:
            ConfigurationError: it is not what is expected.
        """
        try:
            return self.convert(text)
        except ValueError:
            raise ConfigurationError(
                f"invalid value {text!r}: expected {self.expected}", where=self.name, next_step=self.advice
            ) from None


def text(
    name: str,
    default: str = "",
    *,
    help: str,
    fallback: str = "",
    from_project: bool = False,
    lower: bool = False,
    is_shown: bool = True,
) -> Any:
    """Declare a text. With ``is_shown`` false it is left out of ``repr``, as it may hold more than it should."""
    convert = str.lower if lower else str
    setting = Setting(
        name=name, help=help, convert=convert, default=default, fallback=fallback, from_project=from_project
    )
    return _field(setting, default, is_shown=is_shown)


def secret(name: str, *, help: str) -> Any:
    """Declare a text that nothing may show."""
    return _field(Setting(name=name, help=help, is_secret=True), "", is_shown=False)


def number(name: str, default: float, *, least: float, most: float = math.inf, unit: str = "", help: str) -> Any:
    """Declare a number from ``least`` to ``most``, both included."""

    def convert(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError
        return value

    limits = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
    setting = Setting(
        name=name,
        help=help,
        convert=convert,
        expected=f"a number {limits}",
        advice=f"unset {name}, or set a number {limits}",
        default=f"{default:g}",
        unit=unit,
    )
    return _field(setting, float(default))


def whole(name: str, default: int, *, least: int, most: int, unit: str = "", fallback: str = "", help: str) -> Any:
    """Declare a whole number from ``least`` to ``most``, both included."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    setting = Setting(
        name=name,
        help=help,
        convert=convert,
        expected=f"a whole number from {least} to {most}",
        advice=f"unset {name}, or set a number in that range",
        default=str(default),
        unit=unit,
        fallback=fallback,
    )
    return _field(setting, default)


def flag(name: str, default: bool, *, help: str) -> Any:
    """Declare a flag, written as people write one: true, yes, on, 1 and their opposites, in any case."""

    def convert(text: str) -> bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ValueError
        return text.lower() in _TRUE

    setting = Setting(
        name=name,
        help=help,
        convert=convert,
        expected="true or false",
        advice=f"set {name}=true or false",
        default="true" if default else "false",
    )
    return _field(setting, default)


def switch(name: str, default: bool, *, help: str) -> Any:
    """Declare a flag that is passed on to the scoring server, which knows the words on and off alone, in any case."""

    def convert(text: str) -> bool:
        if text.lower() not in ("on", "off"):
            raise ValueError
        return text.lower() == "on"

    setting = Setting(
        name=name,
        help=help,
        convert=convert,
        expected="on or off",
        advice=f"set {name}=on or off",
        default="on" if default else "off",
    )
    return _field(setting, default)


def choice(name: str, *words: str, default: str, fallback: str = "", help: str) -> Any:
    """Declare a text that is one of ``words``; an empty default stands for none of them."""

    def convert(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    expected = f"{', '.join(words[:-1])} or {words[-1]}"
    advice = f"use {expected}" if default else f"use {expected}, or unset it"
    setting = Setting(
        name=name, help=help, convert=convert, expected=expected, advice=advice, default=default, fallback=fallback
    )
    return _field(setting, default)


def path(name: str, default: str = "", *, fallback: str = "", help: str) -> Any:
    """Declare a path, relative to the repository. A field with a default or fallback has to be passed to the class."""
    setting = Setting(name=name, help=help, convert=Path, default=default, fallback=fallback)
    return _field(setting, dataclasses.MISSING if default or fallback else None)


def _field(setting: Setting, default: Any, *, is_shown: bool = True) -> Any:
    return field(default=default, repr=is_shown, metadata={_SETTING: setting})


def declared(section: type) -> dict[str, Setting]:
    """Return the setting of each field of a section that has one."""
    fields = dataclasses.fields(section)
    return {field.name: field.metadata[_SETTING] for field in fields if _SETTING in field.metadata}


def read(section: type[Section], env: Mapping[str, str], *, root: Path = Path(), project_name: str = "") -> Section:
    """Return the section that ``env`` describes; see ``values``."""
    return section(**values(section, env, root=root, project_name=project_name))


def values(section: type, env: Mapping[str, str], *, root: Path, project_name: str) -> dict[str, Any]:
    """Return the value of each setting of a section that is set or has a default, by the name of its field.

    Raises:
        ConfigurationError: a value is not what its setting expects.
    """
    result = {}
    for name, setting in declared(section).items():
        written = read_text(env, setting.name) or (project_name if setting.from_project else setting.default)
        if written:
            value = setting.value(written)
            result[name] = (root / value).absolute() if isinstance(value, Path) else value
    return result


def read_text(env: Mapping[str, str], name: str) -> str:
    """Return the text of a variable, empty when it is not set.

    A pipeline passes a variable that is not set as an empty one, or as the macro that it did not replace: "$(NAME)".
    """
    value = env.get(name, "").strip()
    return "" if value == f"$({name})" else value
