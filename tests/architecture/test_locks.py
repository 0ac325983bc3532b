"""The locks: one resolution, and subsets of it. Nothing here needs the network."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.support.sources import ROOT

REQUIREMENTS = ROOT / "requirements"
COMPILE = runpy.run_path(str(REQUIREMENTS / "compile.py"))
LOCKS: Mapping[str, Sequence[str]] = COMPILE["LOCKS"]
GROUPS: Mapping[str, Sequence[str | Mapping[str, str]]] = tomllib.loads(
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)["dependency-groups"]
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.-]*)(?:\[[^]]*])?==(?P<version>[^ ;\\]+)", re.MULTILINE)
SUBSETS = sorted(set(LOCKS) - {"all"})


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: str) -> set[tuple[str, str]]:
    """Each name and version that a lock holds; a name may have two versions, for different Pythons."""
    text = (REQUIREMENTS / f"{lock}.txt").read_text(encoding="utf-8")
    return {(normalised(match["name"]), match["version"]) for match in PIN.finditer(text)}


def members(group: str) -> Iterator[str]:
    """The names of the packages that a group asks for."""
    for entry in GROUPS[group]:
        if isinstance(entry, str):
            yield normalised(re.split(r"[^A-Za-z0-9._-]", entry, maxsplit=1)[0])
        else:
            yield from members(entry["include-group"])


@pytest.mark.parametrize("lock", SUBSETS)
def test_a_lock_is_a_part_of_the_one_resolution(lock: str) -> None:
    """Every package has the version that all.txt gives it, so training and scoring cannot drift apart."""
    assert {name for name, _ in pins(lock) - pins("all")} <= {*COMPILE["APART"], "ast-serialize"}


@pytest.mark.parametrize("lock", sorted(LOCKS))
def test_a_lock_holds_what_its_groups_ask_for(lock: str) -> None:
    """A package added to a group is in every lock of that group, or the lock was not compiled again."""
    asked = {name for group in LOCKS[lock] for name in members(group)}
    assert asked - {name for name, _ in pins(lock)} == set()


@pytest.mark.parametrize("lock", sorted(LOCKS))
def test_every_pin_has_a_hash(lock: str) -> None:
    """What is installed is what was locked, byte for byte."""
    entries = re.split(r"^(?=[a-z0-9])", (REQUIREMENTS / f"{lock}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [entry.split("\n")[0] for entry in entries if PIN.match(entry) and "--hash=sha256:" not in entry] == []
    assert len([entry for entry in entries if PIN.match(entry)]) >= len(pins(lock)) > 0


def test_every_lock_is_listed() -> None:
    """Each file in requirements/ says which groups it holds, and where a person reads it."""
    guide = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert {path.stem for path in REQUIREMENTS.glob("*.txt")} == set(LOCKS)
    listed = {row[1]: row[2] for row in re.finditer(r"^\| `([a-z]+)\.txt` \| ([^|]+) \|", guide, re.MULTILINE)}
    expected = {lock: ", ".join(groups) for lock, groups in LOCKS.items()}
    assert {lock: text.replace("`", "").strip() for lock, text in listed.items()} == expected


def test_every_group_is_locked() -> None:
    """No group waits for an installation that nobody has resolved."""
    assert set(GROUPS) - {group for groups in LOCKS.values() for group in groups} == set()


def test_azure_ml_is_the_current_release() -> None:
    """Without its pin the resolver falls back, in silence, to a release of 2021."""
    assert dict(pins("azureml"))["azureml-core"] == "1.61.0.post4"


def test_what_serves_is_lean() -> None:
    """Scoring has no scikit-learn, pandas, MLflow or Azure SDK."""
    assert {name for name, _ in pins("scoring") if re.match(r"scikit|pandas|mlflow|azure", name)} == set()
