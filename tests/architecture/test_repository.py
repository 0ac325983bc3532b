"""What the repository holds: the layout, the front door, and nothing that belongs to one machine."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report, scoring
from ml_service.ports import Platform
from tests.support.sources import ROOT, repository_files

LAYOUT = """
Makefile noxfile.py tasks.py pyproject.toml requirements/all.txt .env.example
data/diabetes.csv
diabetes_regression/__main__.py diabetes_regression/parameters.json diabetes_regression/project.json
diabetes_regression/data.py diabetes_regression/train.py diabetes_regression/evaluate.py
diabetes_regression/register.py diabetes_regression/errors.py
ml_service/errors.py ml_service/config/__init__.py ml_service/ports.py ml_service/package.py
ml_service/workflows/training.py
ml_service/smoke.py ml_service/azure_devops.py ml_service/platforms/local/platform.py ml_service/targets/local/target.py
scoring/score.py scoring/server.py scoring/scoring_service/worker.py scoring/scoring_service/errors.py
tests/support/fake_target.py docs/project-contract.md docs/package-format.md docs/adr/README.md
README.md CONTRIBUTING.md CHANGELOG.md LICENSE
""".split()

# Joined here, so that this file does not find itself.
OF_ONE_MACHINE = re.compile(
    "|".join(
        [
            r"(?<![\w.])" + "/ro" + r"ot/\w",
            r"(?<![\w.])" + "/ho" + r"me/(?!runner|vsts|user)\w",
            r"(?<![\w.])" + "/wo" + r"rk/\w",
            "--(?:extra-)?index" + "-url[ =]+http",
            "^--(?:extra-)?index" + "-url",
            "files.python" + "hosted.org",
            r'"resolved": *"' + "http",
        ]
    ),
    re.MULTILINE,
)
RECIPE = re.compile(r"^(?P<target>[a-z]+):(?P<needs>[^#\n]*)## (?P<help>.+)\n(?P<recipe>(?:\t.*\n?)+)", re.MULTILINE)


def makefile() -> dict[str, re.Match[str]]:
    """The documented targets of the Makefile."""
    return {match["target"]: match for match in RECIPE.finditer((ROOT / "Makefile").read_text(encoding="utf-8"))}


def tasks() -> set[str]:
    """The names of all tasks."""
    command = [sys.executable, "-m", "invoke", "--list", "--list-format", "flat"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^  ([a-z][a-z-]*)", listing, re.MULTILINE))


@pytest.mark.parametrize("path", LAYOUT)
def test_the_layout_is_as_designed(path: str) -> None:
    """A file that people, pipelines or other files name is where they look for it."""
    assert (ROOT / path).is_file()


def test_no_file_names_one_machine_or_one_index() -> None:
    """No path of somebody's machine and no address of a package index is committed."""
    found = []
    for path in repository_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in OF_ONE_MACHINE.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["see /ro" + "ot/x", "cd /wo" + "rk/main", "--index" + "-url https://x", "files.python" + "hosted.org/a"],
)
def test_a_planted_path_or_address_is_found(text: str) -> None:
    """The rule above sees what it is there for."""
    assert OF_ONE_MACHINE.search(text)


@pytest.mark.parametrize("target", sorted(set(makefile()) - {"setup"}))
def test_a_make_target_is_one_call_of_inv_or_nox(target: str) -> None:
    """make knows how to set up, and nothing about how a stage is done."""
    match = makefile()[target]
    assert match["needs"].split() == ["setup"]
    lines = match["recipe"].strip().splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r"@\$\(ENVIRONMENT\)/bin/(inv [a-z-]+|nox( --session [a-z]+)?)", lines[0].strip())


def test_make_calls_tasks_that_exist() -> None:
    """Every ``inv NAME`` in the Makefile is a task."""
    called = set(re.findall(r"bin/inv ([a-z][a-z-]*)", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert called - tasks() == set()


def test_make_alone_lists_the_targets() -> None:
    """A newcomer types ``make`` and sees what there is, and nothing is installed."""
    listing = subprocess.run(["make", "-C", str(ROOT)], check=True, capture_output=True, text=True).stdout
    assert [target for target in makefile() if not re.search(rf"^  {target}\s+\S", listing, re.MULTILINE)] == []


def test_the_hooks_call_tasks_that_exist() -> None:
    """pre-commit checks what CI checks, by the same commands."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    called = re.findall(r"entry: \.venv/bin/inv ([a-z-]+)", hooks)
    assert len(called) == len(re.findall(r"entry:", hooks)) > 0
    assert set(called) - tasks() == set()


def test_decisions_are_numbered_and_listed() -> None:
    """Every decision record is in the list, and has its four parts."""
    folder = ROOT / "docs" / "adr"
    records = sorted(folder.glob("[0-9]*.md"))
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in records if f"]({path.name})" not in index] == []
    for path in records:
        headings = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert [path.name, *headings[:4]] == [path.name, "Status", "Context", "Decision", "Consequences"]


MAPPING = ROOT / "docs" / "adr" / "0053-the-platform-port-in-both-sdks.md"


def test_a_superseded_decision_and_its_successor_name_each_other() -> None:
    """Both records say so, and so does the index."""
    folder = ROOT / "docs" / "adr"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("[0-9]*.md")}
    succeeded = {
        (old, new) for old, text in texts.items() for new in re.findall(r"Superseded by \[\d+\]\((.+?)\)", text)
    }
    succeeding = {(old, new) for new, text in texts.items() for old in re.findall(r"Supersedes \[\d+\]\((.+?)\)", text)}
    assert succeeded == succeeding != set()
    index = (folder / "README.md").read_text(encoding="utf-8")
    marked = set(re.findall(r"^\| \[\d+\]\((.+?)\) \| .*\(superseded by (\d+)\) \|$", index, re.MULTILINE))
    assert marked == {(old, new[:4]) for old, new in succeeded}


def test_every_method_of_the_platform_is_mapped_onto_both_sdks() -> None:
    """The port leaks no SDK's shape: each method has its counterpart in azureml-sdk and in azure-ai-ml."""
    record = MAPPING.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| \S.* \| \S.* \| \S.* \|$", record, re.MULTILINE)
    assert rows == [name for name, value in vars(Platform).items() if inspect.isfunction(value) and name[0] != "_"]


def test_the_mapping_onto_azureml_sdk_is_what_the_adapter_does() -> None:
    """Each call that the column for SDK v1 names occurs in the adapter's code."""
    adapter = ROOT / "ml_service" / "platforms" / "azureml_v1"
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(adapter.glob("*.py")))
    column = re.findall(r"^\| `\w+` \| (\S.*?) \| ", MAPPING.read_text(encoding="utf-8"), re.MULTILINE)
    calls = [re.sub(r"\(.*", "", name).split(".")[-1] for cell in column for name in re.findall(r"`([^`]+)`", cell)]
    assert len(calls) >= len(column)
    assert [call for call in calls if not re.search(rf"\b{call}\b", code)] == []


def test_links_in_the_documents_lead_somewhere() -> None:
    """A relative link in a Markdown file points to a file that is there."""
    broken = []
    for path in (p for p in repository_files() if p.suffix == ".md"):
        for link in re.findall(r"]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link) and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_tables_of_measurements_are_what_was_measured() -> None:
    """Written from benchmarks/results, never by hand."""
    for name in report.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert report.rendered(text) == text, "run: python -m benchmarks.report"
    result = json.loads((report.RESULTS / "scoring.json").read_bytes())
    assert scoring.table(result) in (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")


def test_the_licence_is_mit() -> None:
    """What pyproject.toml declares is what LICENSE says."""
    assert Path(ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert 'license = "MIT"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
