"""Lint, tests and coverage: the tools' own settings are in pyproject.toml and .flake8."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from ml_service.console import Console
from ml_service.errors import MlopsError, UsageError

CHECKED = (
    *("ml_service", "diabetes_regression", "scoring", "emulators", "tools", "benchmarks", "tests", "requirements"),
    *("tasks.py", "noxfile.py"),
)
_FINDING = re.compile(r"^([\w./-]+\.py):(\d+):(?:\d+:)? (?!note: )(?:error: )?(.+)$", re.MULTILINE)
"""A line of flake8's or mypy's output."""

_ONLY_FAILED = ("--last-failed", "--last-failed-no-failures=none")
_NOTHING_TO_RUN = 5
"""Exit code of pytest."""

_QUICK_FLOOR = 60
"""Per cent that the quick tests cover at least; the floor of all tests is in pyproject.toml."""

_REFERENCES = ("tools/commands_reference.py", "tools/settings_reference.py")
"""Each writes the documents that it generates from code, or with --check compares them."""

_ON_MACOS = ("scoring", "requirements", "ml_service/targets/local")
"""Folders that call the system directly and are promised for macOS, which does not have all of Linux's calls."""

_NEED_A_SERVICE = (
    "targets/aci",
    "targets/aks",
    "targets/docker",
    "targets/webapp",
    "images",
    "azure",
    "platforms/azureml_v1",
)
"""Folders of adapters that need an engine, a cluster or a cloud: only tests/adapters can run them whole."""


class QualityError(MlopsError):
    """A check or a test failed."""

    exit_code = 1


def lint(root: Path, console: Console, *, fix: bool = False, junit: str = "") -> None:
    """Run the formatter's check, flake8, mypy and import-linter, and compare the generated documents.

    All of them run, so that one round of mending is enough. ``fix`` formats the code, sorts its imports and writes the
    generated documents first.

    Raises:
        QualityError: one of them found something.
    """
    checked = [name for name in CHECKED if (root / name).exists()]
    if fix:
        for command in (["format", *checked], ["check", "--fix", *checked]):
            subprocess.run([sys.executable, "-m", "ruff", "--quiet", *command], cwd=root, check=False)
    references = {Path(name).stem: ["-m", _module(name)] for name in _REFERENCES if (root / name).is_file()}
    for command in references.values() if fix else ():
        subprocess.run([sys.executable, *command], cwd=root, check=False)
    tools = {
        "format": ["-m", "ruff", "format", "--quiet", "--diff", *checked],
        "imports": ["-m", "ruff", "check", "--quiet", "--diff", *checked],
        "flake8": ["-m", "flake8", *checked],
        "mypy": ["-m", "mypy", f"--cache-dir={_types_cache(root)}", *checked],
        **({"mypy for macOS": _types_on_macos(root)} if (root / _ON_MACOS[0]).is_dir() else {}),
        "import-linter": ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        **{name: [*command, "--check"] for name, command in references.items()},
    }
    first = "" if _types_cache(root).is_dir() else "; mypy reads all types the first time"
    console.line(f"{', '.join(tools)} run side by side{first}")
    with ThreadPoolExecutor() as pool:
        results = dict(zip(tools, pool.map(functools.partial(_checked, root), tools.values()), strict=True))
    for name, (code, output, seconds) in results.items():
        console.line(f"{name}: {'found' if code else 'fine'}, {seconds:.0f} s")
        if code:
            console.line(output.rstrip())
            _show_findings(console, output)
    if junit:
        _write_junit(Path(junit), results)
    if failed := [name for name, (code, _, _) in results.items() if code]:
        again = "inv lint --fix mends" if {"format", "imports", *references} & set(failed) else "mend it"
        raise QualityError(
            f"{', '.join(failed)} found what is listed above", where="lint", next_step=f"{again}; again: inv lint"
        )


def _module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def _types_cache(root: Path) -> Path:
    """One for each environment and its locks: mypy ends with an error of its own on the cache of another."""
    settings = [path for path in (root / "pyproject.toml", root / "requirements" / "all.txt") if path.is_file()]
    content = b"".join([sys.prefix.encode(), *(path.read_bytes() for path in settings)])
    return Path(os.environ.get("MYPY_CACHE_DIR") or root / ".mypy_cache") / hashlib.sha256(content).hexdigest()[:12]


def _types_on_macos(root: Path) -> list[str]:
    return ["-m", "mypy", "--platform=darwin", f"--cache-dir={_types_cache(root)}-darwin", *_ON_MACOS]


def _checked(root: Path, arguments: Sequence[str]) -> tuple[int, str, float]:
    """Exit code, what it printed, and seconds of one tool."""
    started = time.monotonic()
    # import-linter imports the packages that it reads, and scoring_service is not one of the root's.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, ["scoring", os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=env, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


def _show_findings(console: Console, output: str) -> None:
    for path, line, message in _FINDING.findall(output):
        console.finding(message, f"{path}:{line}")


def _write_junit(path: Path, results: dict[str, tuple[int, str, float]]) -> None:
    suite = ElementTree.Element("testsuite", name="lint", tests=str(len(results)))
    suite.set("failures", str(sum(code != 0 for code, _, _ in results.values())))
    for name, (code, output, seconds) in results.items():
        case = ElementTree.SubElement(suite, "testcase", classname="lint", name=name, time=f"{seconds:.3f}")
        if code:
            ElementTree.SubElement(case, "failure", message=f"{name} found problems").text = output
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def test(
    root: Path,
    console: Console,
    *,
    suites: Sequence[str],
    quick: bool = False,
    failed: bool = False,
    measured: bool = True,
    junit: str = "",
) -> None:
    """Run the tests of the named folders.

    ``quick`` leaves out those marked slow. ``measured`` keeps what they cover, for ``coverage`` to report; it takes
    half as long again. ``failed`` takes only those that failed the last time, and adds to the figures of that time.

    Raises:
        UsageError: there is no such folder.
        QualityError: a test failed.
    """
    if missing := [name for name in suites if not (root / "tests" / name).is_dir()]:
        known = ", ".join(sorted(path.name for path in (root / "tests").iterdir() if path.is_dir()))
        raise UsageError(f"no tests in {', '.join(missing)}", where="--suite", next_step=f"use some of: {known}")
    if measured and not failed:
        _run(["-m", "coverage", "erase"], root, console)
    folders = [f"tests/{name}" for name in suites]
    report = Path(junit or root / "reports" / "tests.xml").absolute()
    # The tests on a cluster mostly wait for it, so one process more runs beside them than there are processors.
    # tests/conftest.py decides which tests stay together, since they share what is slow to make, and which come first.
    at_a_time = max(2, os.cpu_count() or 1) + (1 if "adapters" in suites else 0)
    together = ["--numprocesses", str(at_a_time), "--dist", "loadscope", "--no-loadscope-reorder"]
    chosen = ["-m", _marks(suites, quick), "-o", f"cache_dir={_last_results()}", *(_ONLY_FAILED if failed else [])]
    pytest = [*(["-m", "coverage", "run"] if measured else []), "-m", "pytest"]
    code = _run([*pytest, *together, *chosen, *folders, f"--junit-xml={report}"], root, console)
    console.output("look_at", _counted(report))
    if code and not (failed and code == _NOTHING_TO_RUN):
        raise QualityError("a test failed", where="test", next_step="mend it; again: inv test")


def _marks(suites: Sequence[str], quick: bool) -> str:
    """Which tests: an engine or a cluster takes minutes, so they are asked only beside the adapters' own tests."""
    left_out = ["soak", *([] if "adapters" in suites else ["docker", "kubernetes"]), *(["slow"] if quick else [])]
    return " and ".join(f"not {mark}" for mark in left_out)


def _last_results() -> str:
    """Return where pytest remembers what failed: a folder for each environment, since nox runs the tests in several."""
    return f".pytest_cache/{hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]}"


def _counted(report: Path) -> str:
    """Return how many tests passed and were skipped, from a JUnit report."""
    try:
        suite = ElementTree.parse(report).getroot()[0]
    except (OSError, ElementTree.ParseError, IndexError):
        return "no report"
    skipped = int(suite.get("skipped", 0))
    bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    passed = int(suite.get("tests", 0)) - skipped - bad
    return f"{passed} passed, {skipped} skipped" + (f", {bad} failed" if bad else "")


def coverage(root: Path, console: Console, *, quick: bool = False, xml: str = "", html: str = "") -> None:
    """Report what the last tests covered and hold it to the floor.

    The quick tests have a floor of their own. What needs a service counts where TESTS_NEED says that engine and cluster
    are there.

    Raises:
        QualityError: the floor was missed, or no tests have been measured.
    """
    if any(root.glob(".coverage.*")):
        _run(["-m", "coverage", "combine", "--append", "--quiet"], root, console)
    chosen = _counted_files(console, quick)
    for report, path in (("xml", xml), ("html", html)):
        if path:
            option = "-o" if report == "xml" else "-d"
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            _run(["-m", "coverage", report, "--quiet", "--fail-under=0", *chosen, option, path], root, console)
    floor = [f"--fail-under={_QUICK_FLOOR}"] if quick else []
    command = [sys.executable, "-m", "coverage", "report", *floor, *chosen]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True)
    console.line((done.stdout + done.stderr).rstrip())
    total = re.search(r"^TOTAL .* (\d+%)", done.stdout, re.MULTILINE)
    if total is None:
        raise QualityError("no tests have been measured", where="coverage", next_step="run: inv test")
    if done.returncode:
        raise QualityError(
            "the coverage is below the floor", where="coverage", next_step="test what the table shows as missing"
        )
    console.output("look_at", f"{total[1]} covered{' by the quick tests' if quick else ''}")


def _counted_files(console: Console, quick: bool) -> list[str]:
    """The option of coverage.py that leaves out what these tests cannot run whole here."""
    if not quick and {"docker", "kubernetes"} <= set(os.environ.get("TESTS_NEED", "").split(",")):
        return []
    console.line("adapters that need a service (Azure ML, an engine, a cluster) are left to: inv test --suite adapters")
    return [f"--omit={','.join(f'ml_service/{folder}/*' for folder in _NEED_A_SERVICE)}"]


def _run(arguments: list[str], root: Path, console: Console) -> int:
    command, env = [sys.executable, *arguments], {**os.environ, "PYTHONUNBUFFERED": "1"}
    if not console.has_agent:
        return subprocess.run(command, cwd=root, env=env).returncode
    # What a failing test prints comes from anywhere: the agent must not take it for a command.
    with subprocess.Popen(
        command, cwd=root, env=env, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            console.line(line.rstrip("\n"))
    return process.returncode
