"""``python -m tools.settings_reference``: generates .env.example and the tables of settings in docs/.

With ``--check`` nothing is written, and a file that is not what the declarations say ends with exit code 1.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_service.config import SECTIONS, CoreSettings, ScoringSettings
from ml_service.config.fields import Setting, declared

ROOT = Path(__file__).resolve().parents[1]
GROUPS: Mapping[str, type] = {"core": CoreSettings, **SECTIONS}
"""The sections in the order of .env.example, by the word that a marker in docs/ has for each."""

_HEAD = """\
# Every setting of the tasks, with its default. An option on the command line takes precedence over a setting, a setting
# over a default. Copy this file to .env and change what you need: every task reads .env, and a variable of the
# environment takes precedence over it. git ignores .env. An empty value is the same as no value.
# This file is generated (inv lint --fix): settings are declared in ml_service/config.
"""
_WIDTH = 120
_TABLE = re.compile(r"(<!-- settings ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FLAGS = ("true or false", "on or off")


def example() -> str:
    """Return the text of .env.example."""
    return "\n".join([_HEAD, *(line for section in GROUPS.values() for line in _group(section))])


def rendered(text: str) -> str:
    """Return a document with its tables of settings written anew.

    Raises:
        KeyError: a marker names a section that does not exist.
    """
    return _TABLE.sub(lambda block: "\n".join([block[1].rstrip(), *_table(GROUPS[block[2]]), block[3]]), text)


def _group(section: type) -> Iterator[str]:
    summary = inspect.cleandoc(section.__doc__ or "").splitlines()[0]
    yield f"# ---- {summary.rstrip('.')} ----"
    yield ""
    for setting in declared(section).values():
        words = " ".join([setting.help, *_details(setting)])
        yield from textwrap.wrap(words, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        # Written with its default, an option of the scoring server would be passed on as a chosen one.
        is_off = setting.fallback or setting.from_project or section is ScoringSettings
        yield f"{'#' if is_off else ''}{setting.name}={_default(setting)}"
        yield ""


def _table(section: type) -> Iterator[str]:
    yield "| setting | default | meaning |"
    yield "|---|---|---|"
    for setting in declared(section).values():
        default = setting.fallback or ("the project's name with dashes" if setting.from_project else setting.default)
        details = [detail for detail in _details(setting) if not detail.startswith("Default: ")]
        yield f"| `{setting.name}` | {default} | {' '.join([setting.help, *details])} |"


def _details(setting: Setting) -> Iterator[str]:
    """Yield what the declaration says besides the help, as sentences."""
    if setting.expected and setting.expected not in _FLAGS:
        limits = f"{setting.unit}: {setting.expected}" if setting.unit else setting.expected
        yield f"{limits[0].upper()}{limits[1:]}."
    if setting.convert is Path:
        yield "A path, relative to the repository."
    if setting.from_project:
        yield "Default: the project's name with dashes."
    if setting.fallback:
        yield f"Default: {setting.fallback}."
    if setting.is_secret:
        yield "A secret: keep it in a vault or in a secret variable, not in a file."


def _default(setting: Setting) -> str:
    return CoreSettings.project.replace("_", "-") if setting.from_project else setting.default


def main() -> None:
    """Write, or with ``--check`` compare, all of them."""
    texts = {ROOT / ".env.example": example()}
    texts |= {page: rendered(page.read_text(encoding="utf-8")) for page in sorted((ROOT / "docs").glob("*.md"))}
    stale = {path: text for path, text in texts.items() if path.read_text(encoding="utf-8") != text}
    if stale and "--check" in sys.argv:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"{names}: not what ml_service/config declares; run: python -m tools.settings_reference")
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
