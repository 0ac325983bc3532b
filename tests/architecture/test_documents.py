"""The documents say what is so: the map, the layers, the index, what is generated, how lines wrap."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from tests.support.sources import ROOT, repository_files

DOCS = ROOT / "docs"
LONGEST_LINE = 140
"""Columns of a line of Markdown; tables and commands are as long as they are."""

LONGEST_README = 120
"""Lines."""

UNWRAPPED = {"scoring.md"}

TOP = "benchmarks|data|diabetes_regression|docs|emulators|ml_service|requirements|scoring|tests|tools"
OUR_PATH = re.compile(rf"`((?:{TOP})/[\w./*-]+)[`:]")
WITH_OTHER_PATHS = {"CHANGELOG.md", "add-a-target.md"}
"""The one speaks of the past, the other of a target that is only an example."""


def text(name: str) -> str:
    """Return a document of docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def folders() -> set[str]:
    """Return the folders of the repository; of the tests those that CONTRIBUTING names, since the rest mirrors."""
    parents = {parent for path in repository_files() for parent in path.relative_to(ROOT).parents}
    return {str(path) for path in parents if path.parts and (path.parts[0] != "tests" or len(path.parts) <= 2)}


def test_the_map_names_every_folder_and_no_other() -> None:
    """docs/architecture.md has one line for each folder, in order."""
    rows = re.findall(r"^\| `([\w./-]+)` \| \S.* \|$", text("architecture.md").partition("## The map")[2], re.MULTILINE)
    mapped = rows[: rows.index("tools/azure_pipelines/rules") + 1]
    assert set(mapped) == folders()
    assert mapped == sorted(mapped)


def test_the_layers_are_those_of_the_contract() -> None:
    """Who may import whom stands in pyproject.toml; the page repeats it word by word."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each.get("containers") == ["ml_service"])
    block = re.search(r"<!-- layers ml_service -->\n```\n(.*?)```", text("architecture.md"), re.DOTALL)
    assert block is not None
    assert block.group(1).splitlines() == layers


def test_the_index_has_every_page() -> None:
    """docs/README.md leads to each page of docs/ by its purpose."""
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)\)", text("README.md"))) == set()


def test_the_reference_of_the_commands_is_what_the_tasks_say() -> None:
    """It is generated from the tasks, never written by hand."""
    command = [sys.executable, "-m", "tools.commands_reference", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_in_the_documents_exist() -> None:
    """A file or folder that a document names is there, also after a move."""
    pages = (path for path in repository_files() if path.suffix == ".md" and path.name not in WITH_OTHER_PATHS)
    missing = []
    for page in pages:
        for path in OUR_PATH.findall(page.read_text(encoding="utf-8")):
            if not list(ROOT.glob(path.rstrip("/"))) and path != "scoring/requirements.txt":  # of the package
                missing.append(f"{page.relative_to(ROOT)}: {path}")
    assert missing == []


def test_links_to_a_section_lead_to_a_heading() -> None:
    """A link with ``#`` names a heading, or a place that has that name, of the document it leads to."""
    broken = []
    for path in (path for path in repository_files() if path.suffix == ".md"):
        for target, section in re.findall(r"\]\(([^):#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
            page = (path.parent / target if target else path).read_text(encoding="utf-8")
            headings = {re.sub(r"[^\w\- ]", "", line.lower()).strip(" ").replace(" ", "-") for line in heads(page)}
            if section not in headings | set(re.findall(r'<a id="([\w-]+)"', page)):
                broken.append(f"{path.relative_to(ROOT)}: {target}#{section}")
    assert broken == []


def heads(page: str) -> list[str]:
    """Return the headings of a page, as they are written."""
    return re.findall(r"^#+ (.+)$", page, re.MULTILINE)


def test_lines_wrap() -> None:
    """Prose fits on a screen."""
    long = []
    for path in (path for path in repository_files() if path.suffix == ".md" and path.name not in UNWRAPPED):
        fenced = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            fenced ^= line.lstrip().startswith("```")
            if len(line) > LONGEST_LINE and not fenced and not line.startswith("|"):
                long.append(f"{path.relative_to(ROOT)}:{number}")
    assert long == []


def test_the_readme_is_read_in_a_few_minutes() -> None:
    """What is added there takes the place of something; the rest belongs to docs/."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_every_picture_is_shown() -> None:
    """A picture that no document shows says what nobody checks."""
    pages = "".join(path.read_text(encoding="utf-8") for path in repository_files() if path.suffix == ".md")
    assert [path.name for path in sorted((DOCS / "images").iterdir()) if f"images/{path.name})" not in pages] == []
