"""Clean environments for the tests: each session installs a lock, then runs tasks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.1"
nox.options.sessions = ["test"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "venv"

LEFT_BY_TOOLS = (
    ".mypy_cache",
    ".pytest_cache",
    ".import_linter_cache",
    ".hypothesis",
    "artifact",
    "reports",
    "htmlcov",
    ".coverage",
)


EVERYTHING = "architecture,unit,contract,integration,scoring,adapters,e2e"


def add_pyenv_interpreters() -> None:
    """Put pyenv's Pythons at the end of PATH: its shims are no help, since one answers only for a chosen version."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders = [str(folder) for folder in sorted(versions.glob("3.1[123].*/bin"))]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *folders])


add_pyenv_interpreters()


def install(session: nox.Session, lock: str) -> None:
    """Make the session's environment hold ``lock``; it says nothing when nothing has changed."""
    environment = Path(session.virtualenv.location)
    session.run_install("python", "requirements/sync.py", str(environment), lock, silent=False)


@nox.session(python=["3.11", "3.12", "3.13"])
def test(session: nox.Session) -> None:
    """On 3.11 everything, with every SDK and the coverage floor; on 3.12 what needs neither SDKs nor engines;
    on 3.13 the quick tests of these.

    What follows ``--`` goes to the tasks, such as ``--failed``.
    """
    if session.python == "3.11":
        install(session, "requirements/all.txt")
        session.run("inv", "test", "--suite", EVERYTHING, *session.posargs)
        session.run("inv", "coverage")
    else:
        install(session, "requirements/ci.txt")
        # Coverage is that of 3.11. The report must not overwrite the one of 3.11, which may run at the same time.
        report = Path(session.virtualenv.location) / "tests.xml"
        quick = ["--quick"] if session.python == "3.13" else []
        session.run("inv", "test", "--no-coverage", "--junit", str(report), *quick, *session.posargs)


@nox.session(venv_backend="none")
def lock(session: nox.Session) -> None:
    """Compile requirements/*.txt from pyproject.toml; what follows ``--`` goes to uv, such as ``--upgrade``."""
    session.run("python", "requirements/compile.py", *session.posargs, external=True)


@nox.session(venv_backend="none")
def clean(session: nox.Session) -> None:
    """Remove what tests and reports left behind; the environment and the local store stay."""
    for name in LEFT_BY_TOOLS:
        path = Path(name)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(Path(session.cache_dir).parent, ignore_errors=True)
