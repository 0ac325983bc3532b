"""Who may import whom. What import-linter can express stands in pyproject.toml; this is the rest of it."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.sources import ROOT, imported_packages

SDKS = {"azure", "azureml", "docker", "kubernetes", "mlflow"}
OURS = {"benchmarks", "diabetes_regression", "emulators", "ml_service", "noxfile", "scoring", "tasks", "tests", "tools"}
ADAPTERS = tuple(f"ml_service/{folder}/" for folder in ("platforms", "targets", "images", "azure"))
HEAVY = SDKS | {"matplotlib", "numpy", "onnx", "onnxruntime", "pandas", "pandera", "scipy", "sklearn", "skl2onnx"}


def offenders(pattern: str, forbidden: set[str], root: Path = ROOT) -> Mapping[str, set[str]]:
    """The files that match ``pattern`` and import one of the forbidden packages, with what they import."""
    found = {
        str(path.relative_to(root)): imported_packages(path.read_text(encoding="utf-8")) & forbidden
        for path in sorted(root.glob(pattern))
    }
    return {name: packages for name, packages in found.items() if packages}


def projects(root: Path = ROOT) -> set[str]:
    """The ML projects: folders with a project.json."""
    return {path.parent.name for path in root.glob("*/project.json")}


def test_the_runner_imports_no_project() -> None:
    """``ml_service`` runs any project as a process and imports none by name."""
    assert projects() >= {"diabetes_regression"}
    assert offenders("ml_service/**/*.py", projects()) == {}


def test_the_tasks_import_no_project() -> None:
    """The tasks know a project only by the name that they are given."""
    assert offenders("tasks.py", projects()) == {}


@pytest.mark.parametrize("project", sorted(projects()))
def test_a_project_imports_nothing_of_what_runs_it(project: str) -> None:
    """A project knows files: no cloud, no tracking service, no runner, no other project."""
    assert offenders(f"{project}/**/*.py", (SDKS | OURS) - {project}) == {}


def test_sdks_are_known_to_adapters_only() -> None:
    """Outside the adapters and what they share, nothing in ``ml_service`` imports an SDK."""
    found = offenders("ml_service/**/*.py", SDKS)
    assert {name for name in found if not name.startswith(ADAPTERS)} == set()
    assert offenders("tasks.py", SDKS) == {}


def test_the_scoring_code_imports_nothing_of_ours() -> None:
    """``scoring`` ships in the image alone, so its files know each other by plain name and nothing else here."""
    assert offenders("scoring/**/*.py", OURS) == {}


def test_the_scoring_code_imports_no_training_library() -> None:
    """What serves needs no scikit-learn, pandas, MLflow or Azure SDK."""
    assert offenders("scoring/**/*.py", HEAVY - {"numpy", "onnxruntime"}) == {}


def test_the_emulators_import_nothing_of_ours() -> None:
    """An emulator answers like the real service, so it may not know how we ask."""
    assert offenders("emulators/**/*.py", OURS - {"emulators"}) == {}


def test_the_emulators_declare_what_they_import() -> None:
    """They can be installed alone: every library that they import is a dependency or an extra of theirs."""
    project = tomllib.loads((ROOT / "emulators" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[^a-z]", requirement)[0] for requirement in declared}
    imported = set().union(
        *(imported_packages(path.read_text(encoding="utf-8")) for path in (ROOT / "emulators").rglob("*.py"))
    )
    assert imported - set(sys.stdlib_module_names) - {"emulators"} == names


def test_a_planted_import_is_found(tmp_path: Path) -> None:
    """The rules above see an import inside a function and one by ``import_module``."""
    source = "import importlib\ndef f():\n    import mlflow.client\n    importlib.import_module('docker.errors')\n"
    (tmp_path / "planted.py").write_text(source)
    assert offenders("*.py", SDKS, tmp_path) == {"planted.py": {"docker", "mlflow"}}


def test_listing_the_tasks_loads_no_sdk_and_no_numerics() -> None:
    """``inv --list`` imports the tasks, and pays for nothing that a single task uses."""
    code = "import sys, tasks; print(*{name.split('.')[0] for name in sys.modules})"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    listing = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert set(listing.stdout.split()) & HEAVY == set()


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a copy of the repository."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    # import-linter reads the copy and runs none of it, so there is nothing to measure.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment["PYTHONPATH"] = "scoring"
    return subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)


@pytest.fixture
def copy_of_the_sources(tmp_path: Path) -> Path:
    """The packages that import-linter reads, and its contracts."""
    for package in ("ml_service", "diabetes_regression", "tools", "scoring"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def append(line: str, path: str) -> Callable[[Path], None]:
    """A change: one more line at the end of a file."""

    def change(root: Path) -> None:
        with (root / path).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")

    return change


def test_the_contracts_are_kept(copy_of_the_sources: Path) -> None:
    """import-linter finds nothing to complain about."""
    result = lint_imports(copy_of_the_sources)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(append("import ml_service.workflows", "ml_service/ports.py"), id="a port imports a workflow"),
        pytest.param(append("import ml_service.platforms", "ml_service/targets/__init__.py"), id="target, platform"),
        pytest.param(append("import ml_service.targets", "ml_service/workflows/training.py"), id="workflow, target"),
        pytest.param(append("import ml_service.targets.aks", "ml_service/targets/aci/target.py"), id="target, target"),
        pytest.param(append("import ml_service.images", "ml_service/common/keys.py"), id="common, images"),
        pytest.param(append("import tools", "ml_service/package.py"), id="the runner needs a tool"),
        pytest.param(append("import diabetes_regression", "ml_service/package.py"), id="the runner names a project"),
        pytest.param(append("import ml_service.errors", "diabetes_regression/errors.py"), id="project, runner"),
        pytest.param(append("import mlflow", "diabetes_regression/errors.py"), id="project, tracking"),
        pytest.param(append("", "ml_service/elsewhere.py"), id="a module that has no layer"),
        pytest.param(append("import ml_service.errors", "scoring/scoring_service/errors.py"), id="scoring, runner"),
        pytest.param(
            append("import scoring_service.http", "scoring/scoring_service/model/rows.py"), id="the model knows HTTP"
        ),
        pytest.param(append("", "scoring/scoring_service/elsewhere.py"), id="a scoring module that has no layer"),
    ],
)
def test_the_contracts_see_a_planted_violation(copy_of_the_sources: Path, change: Callable[[Path], None]) -> None:
    """Each rule turns red on a line that breaks it."""
    change(copy_of_the_sources)
    assert "1 broken" in lint_imports(copy_of_the_sources).stdout
