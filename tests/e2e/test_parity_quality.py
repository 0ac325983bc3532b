"""The job Quality, played: the real tasks on the repository with a few tests of its own in place of its suite.

``inv ci`` and nox run the whole suite; here it is the job that is tested, for good code and for bad.
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest

import tasks
from tests.support.sources import ROOT, repository_files
from tools.azure_pipelines.expand import expand
from tools.azure_pipelines.model import Pipeline, read
from tools.azure_pipelines.played import FAILED, SKIPPED, SUCCEEDED, Played
from tools.azure_pipelines.player import Player, make_checkout

FOLDER = ROOT / ".azure-pipelines"
PLANTED = "##vso[task.setvariable variable=planted;isoutput=true]yes"
SUITES = inspect.signature(tasks.test.body).parameters["suite"].default.split(",")
GOOD = '"""A test."""\n\n\ndef test_it() -> None:\n    """It holds."""\n    assert [] == []\n'
BAD = GOOD.replace("assert [] == []", f'print("{PLANTED}")\n    assert "{PLANTED}" == ""')
UNTIDY = '"""Not tidy."""\n\nimport os\n'
# The floor is that of the whole suite, which is not here.
COVERAGE = "[run]\nbranch = true\nparallel = true\nsource = ml_service\n"


def small_repository(directory: Path, **changes: str) -> Path:
    """The repository with one test in each suite; ``changes`` maps paths, ``/`` written ``__``, to other contents."""
    files = [path for path in repository_files() if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks")]
    # Each suite that `inv test` runs has to be there.
    extra = {f"tests__{suite}__test_one_of_{suite}.py": GOOD for suite in SUITES}
    return make_checkout(
        ROOT, files, directory, {name.replace("__", "/"): content for name, content in (extra | changes).items()}
    )


def pipeline(name: str) -> Pipeline:
    """The expanded pipeline of a file."""
    return read(name, expand(FOLDER, name)[0])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the plays share: settings of coverage, and mypy's cache, without which it takes half a minute."""
    directory = tmp_path_factory.mktemp("shared")
    (directory / "coveragerc").write_text(COVERAGE)
    if (ROOT / ".mypy_cache").is_dir():
        # Just written, where `inv lint` came before: most of it fits.
        shutil.copytree(ROOT / ".mypy_cache", directory / "mypy")
    return directory


def play(name: str, checkout: Path, work: Path, shared: Path) -> Played:
    """Play a pipeline on a checkout."""
    variables = {"MYPY_CACHE_DIR": str(shared / "mypy"), "COVERAGE_RCFILE": str(shared / "coveragerc")}
    found = pipeline(name)
    if "variables" not in found.raw:
        found.raw["variables"] = [{"group": "of the test"}]
    return Player(checkout, work, variables=variables, stand_ins={}).play(found, "1")


def test_a_pull_request_of_good_code_is_green(tmp_path: Path, shared: Path) -> None:
    """Lint, tests, coverage and data; both results and the coverage are published."""
    checkout = small_repository(tmp_path / "checkout")
    played = play("pr.yml", checkout, tmp_path / "work", shared)
    assert played.stages == {"Quality": SUCCEEDED}, played.log
    assert [script.split()[1] for script in played.scripts] == ["lint", "test", "coverage", "validate-data"]
    assert "TOTAL" in played.log
    directory = played.jobs[("Quality", "Quality")].directory
    assert directory is not None
    published = {path.name for path in (directory / "reports").glob("*.xml")}
    assert {"lint.xml", "tests.xml", "coverage.xml"} <= published


def test_bad_code_is_red_and_all_of_it_is_shown(tmp_path: Path, shared: Path) -> None:
    """Every check runs whatever the one before said; findings stand beside their lines; no foreign text is obeyed."""
    rows = (ROOT / "data" / "diabetes.csv").read_text().splitlines(keepends=True)
    rows[4] = rows[4].replace(rows[4].split(",")[2], PLANTED, 1)
    checkout = small_repository(
        tmp_path / "checkout",
        **{"tests__unit__test_bad.py": BAD, "ml_service__untidy.py": UNTIDY, "data__diabetes.csv": "".join(rows)},
    )
    played = play("diabetes_regression-ci-train-register.yml", checkout, tmp_path / "work", shared)
    job = played.jobs[("Model_CI", "Quality")]
    assert (job.result, played.jobs[("Model_CI", "Publish")].result) == (FAILED, SKIPPED)
    assert played.stages == {"Model_CI": FAILED, "Train": SKIPPED, "Artifact": SKIPPED}
    assert [s.split()[1] for s in played.scripts] == ["lint", "test", "coverage", "validate-data"], played.log
    assert "no results" not in job.log and "no coverage" not in job.log
    issues = [properties for name, properties, _ in played.commands if name == "task.logissue"]
    places = {(one.get("sourcepath"), one.get("linenumber")) for one in issues}
    assert {("ml_service/untidy.py", "3"), ("data/diabetes.csv", "5")} <= places
    # A failing test printed a logging command, and a cell of the data holds one.
    assert "vso[task.setvariable variable=planted" in played.log
    assert [p for name, p, _ in played.commands if name == "task.setvariable" and p["variable"] == "planted"] == []
