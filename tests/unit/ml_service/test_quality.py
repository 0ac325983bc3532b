"""Lint, tests and coverage, on small repositories of their own."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ml_service import quality
from ml_service.console import Console
from ml_service.errors import UsageError
from ml_service.quality import QualityError

pytestmark = pytest.mark.slow

SUITES = ["architecture", "contract", "integration", "scoring", "unit"]

SETTINGS = """
[tool.coverage.run]
branch = true
parallel = true
patch = ["subprocess"]
source_pkgs = ["ml_service"]
[tool.coverage.report]
fail_under = 90
[tool.pytest.ini_options]
markers = ["slow"]
[tool.ruff.lint]
select = ["I"]
[tool.importlinter]
root_package = "ml_service"
[[tool.importlinter.contracts]]
name = "nothing"
type = "independence"
modules = ["ml_service"]
"""


@pytest.fixture
def console() -> Console:
    return Console(io.StringIO())


@pytest.fixture(scope="module")
def types_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of Python's own types, which takes it seconds."""
    return tmp_path_factory.mktemp("types")


@pytest.fixture
def root(tmp_path: Path, types_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean repository with one module, half of it tested."""
    # The tests of these tests are not to be measured by the coverage that measures us.
    for name in [name for name in os.environ if name.startswith(("COVERAGE", "COV_", "PYTEST"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MYPY_CACHE_DIR", str(types_cache))
    # The plugins of all installed libraries take longer to load than these tests take to run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    (tmp_path / ".gitignore").write_text("reports/\n.coverage*\n__pycache__/\n.*cache/\n")
    (tmp_path / "ml_service").mkdir()
    (tmp_path / "ml_service" / "__init__.py").write_text("")
    (tmp_path / "ml_service" / "sign.py").write_text('def sign(x: int) -> str:\n    return "+" if x > 0 else "-"\n')
    for suite in SUITES:
        (tmp_path / "tests" / suite).mkdir(parents=True)
        (tmp_path / "tests" / suite / f"test_{suite}.py").write_text(
            'from ml_service.sign import sign\n\n\ndef test_plus() -> None:\n    assert sign(1) == "+"\n'
        )
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def test_lint_is_quiet_about_clean_code(root: Path, console: Console, tmp_path: Path) -> None:
    """The JUnit report has one case for each tool."""
    quality.lint(root, console, junit=str(tmp_path / "reports" / "lint.xml"))
    suite = ElementTree.parse(tmp_path / "reports" / "lint.xml").getroot()
    assert [case.get("name") for case in suite] == ["format", "imports", "flake8", "mypy", "import-linter"]
    assert (suite.get("tests"), suite.get("failures")) == ("5", "0")


def test_lint_runs_every_tool_before_it_fails(root: Path, tmp_path: Path) -> None:
    """One round of mending is enough, and the findings are in the report."""
    (root / "ml_service" / "bad.py").write_text('import os\n\nx: int = "text"\n')
    stream = io.StringIO()
    with pytest.raises(QualityError, match="flake8, mypy found"):
        quality.lint(root, Console(stream), junit=str(tmp_path / "lint.xml"))
    assert "F401" in stream.getvalue()
    assert "Incompatible types" in stream.getvalue()
    failures = ElementTree.parse(tmp_path / "lint.xml").getroot().findall("testcase/failure")
    assert len(failures) == 2
    assert "F401" in (failures[0].text or "")


def test_lint_can_mend_the_format_and_the_order_of_imports(root: Path, console: Console) -> None:
    """Without --fix it only shows what would change."""
    path = root / "ml_service" / "loose.py"
    path.write_text("import sys\nimport os\n\nNAMES = [os.name,sys.platform]\n")
    with pytest.raises(QualityError, match="format, imports, flake8 found") as caught:
        quality.lint(root, console)
    assert "inv lint --fix" in caught.value.next_step
    quality.lint(root, console, fix=True)
    assert path.read_text() == "import os\nimport sys\n\nNAMES = [os.name, sys.platform]\n"


def test_the_named_suites_are_run_and_reported(root: Path, console: Console, tmp_path: Path) -> None:
    """The others are not."""
    (root / "tests" / "unit" / "test_unit.py").write_text("def test_wrong() -> None:\n    assert False\n")
    quality.test(root, console, suites=["contract"], junit=str(tmp_path / "test.xml"))
    cases = ElementTree.parse(tmp_path / "test.xml").getroot().iter("testcase")
    assert [case.get("classname") for case in cases] == ["tests.contract.test_contract"]


def test_a_failed_test_fails(root: Path, console: Console) -> None:
    """With exit code 1."""
    (root / "tests" / "unit" / "test_unit.py").write_text("def test_wrong() -> None:\n    assert False\n")
    with pytest.raises(QualityError) as caught:
        quality.test(root, console, suites=["unit"])
    assert caught.value.exit_code == 1


def test_an_unknown_suite_is_an_error_of_usage(root: Path, console: Console) -> None:
    """That lists the known ones."""
    with pytest.raises(UsageError, match="architecture, contract, integration, scoring, unit"):
        quality.test(root, console, suites=["unti"])


def test_coverage_reports_what_the_last_tests_covered(root: Path, tmp_path: Path) -> None:
    """Both reports are written; asked again, it says the same."""
    quality.test(root, Console(io.StringIO()), suites=SUITES)
    outputs, reports = tmp_path / "reports" / "outputs", tmp_path / "reports"
    console = Console(io.StringIO(), outputs=outputs)
    quality.coverage(root, console, xml=str(reports / "c.xml"), html=str(reports / "html"))
    assert ElementTree.parse(tmp_path / "reports" / "c.xml").getroot().get("line-rate") == "1"
    assert (tmp_path / "reports" / "html" / "index.html").exists()
    assert "100% covered" in outputs.read_text()
    quality.coverage(root, console)


def test_tests_may_run_without_being_measured(root: Path, console: Console) -> None:
    """The figures of the time before stay."""
    quality.test(root, console, suites=["unit"], measured=False)
    with pytest.raises(QualityError, match="no tests have been measured"):
        quality.coverage(root, console)


def test_coverage_without_tests_says_what_to_run(root: Path, console: Console) -> None:
    """Nothing measured is not a floor missed."""
    with pytest.raises(QualityError, match="no tests have been measured") as caught:
        quality.coverage(root, console)
    assert caught.value.next_step == "run: inv test"


def test_coverage_below_the_floor_fails(root: Path) -> None:
    """The table says what is missing; the quick tests have a lower floor of their own."""
    lines = "".join(f"    if x == {number}:\n        return {number}\n" for number in range(3))
    (root / "ml_service" / "sign.py").write_text(
        f"def sign(x: int) -> object:\n    if x == 1:\n        return '+'\n{lines}"
    )
    quality.test(root, Console(io.StringIO()), suites=["unit"])
    stream = io.StringIO()
    with pytest.raises(QualityError, match="below the floor"):
        quality.coverage(root, Console(stream))
    assert "sign.py" in stream.getvalue()


def test_the_quick_tests_leave_out_the_slow_ones(root: Path, tmp_path: Path) -> None:
    """And say by whom the figure is."""
    path = root / "tests" / "unit" / "test_unit.py"
    path.write_text("import pytest\n\n\n@pytest.mark.slow\ndef test_slow() -> None:\n    assert True\n")
    outputs = tmp_path / "reports" / "outputs"
    quality.test(root, Console(io.StringIO(), outputs=outputs), suites=["unit", "contract"], quick=True)
    assert "1 passed" in outputs.read_text()
    quality.coverage(root, Console(io.StringIO(), outputs=outputs), quick=True)
    assert "100% covered by the quick tests" in outputs.read_text()


def test_what_failed_is_run_again_and_its_figures_are_added(root: Path, tmp_path: Path) -> None:
    """The others are not run again, and yet they count."""
    (root / "ml_service" / "more.py").write_text("def more() -> int:\n    return 1\n")
    path = root / "tests" / "unit" / "test_unit.py"
    path.write_text("from ml_service.more import more\n\n\ndef test_more() -> None:\n    assert more() == 2\n")
    with pytest.raises(QualityError):
        quality.test(root, Console(io.StringIO()), suites=SUITES)
    path.write_text(path.read_text().replace("2", "1"))
    outputs = tmp_path / "reports" / "outputs"
    quality.test(root, Console(io.StringIO(), outputs=outputs), suites=SUITES, failed=True)
    quality.coverage(root, Console(io.StringIO(), outputs=outputs))
    assert "1 passed, 0 skipped" in outputs.read_text()
    assert "100% covered" in outputs.read_text()
    quality.test(root, Console(io.StringIO()), suites=SUITES, failed=True)


def test_an_engine_and_a_cluster_are_asked_beside_the_adapters_only() -> None:
    """They take minutes, which nobody wants to wait for at each change."""
    assert quality._marks(["unit", "contract"], quick=False) == "not soak and not docker and not kubernetes"
    assert quality._marks(["adapters", "contract"], quick=False) == "not soak"
    assert quality._marks(["unit"], quick=True) == "not soak and not docker and not kubernetes and not slow"


def test_adapters_count_where_engine_and_cluster_are_there(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere their tests are skipped, and the floor would ask for what cannot be."""
    monkeypatch.delenv("TESTS_NEED", raising=False)
    (omitted,) = quality._counted_files(console, quick=False)
    assert "ml_service/targets/aks/*" in omitted and "ml_service/targets/local/*" not in omitted
    monkeypatch.setenv("TESTS_NEED", "docker,kubernetes")
    assert quality._counted_files(console, quick=False) == []
    assert quality._counted_files(console, quick=True) == [omitted]
