"""Setting up an environment: complete, or made anew. No network: the packages are made here, and so is a small uv."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]

# Takes the one command that sync.py gives to uv, lets pip do the work, and keeps a log. It fails or waits when told to.
SMALL_UV = """#!python
import os, pathlib, subprocess, sys, time
assert sys.argv[1:5] == ["pip", "sync", "--require-hashes", "--python"], sys.argv
log = pathlib.Path(os.environ["SMALL_UV_LOG"])
with log.open("a") as file:
    file.write("called\\n")
if os.environ.get("SMALL_UV") == "waits":
    time.sleep(600)
if os.environ.get("SMALL_UV") == "fails":
    sys.exit("no route to the index")
pip = [sys.argv[5], "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", sys.argv[6]]
sys.exit(subprocess.run(pip).returncode)
"""


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> str:
    """Make a wheel in ``folder``; returns the line of a lock that asks for it."""
    information = f"{name}-{version}.dist-info"
    contents = {
        **files,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in contents) + f"{information}/RECORD,,\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**contents, f"{information}/RECORD": record}.items():
            entry = zipfile.ZipInfo(member)
            entry.external_attr = (0o100755 if "/scripts/" in member else 0o100644) << 16
            archive.writestr(entry, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@dataclass(frozen=True)
class Clone:
    """A repository that holds what setting up needs, and an index of its own."""

    root: Path
    wheels: Path

    @property
    def environment(self) -> Path:
        return self.root / ".venv"

    @property
    def uv_calls(self) -> int:
        log = self.root / "uv.log"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def lock(self, version: str) -> None:
        """Let the lock ask for a version of the package ``demo``."""
        line = wheel(self.wheels, "demo", version, {"demo.py": f'version = "{version}"\n'})
        (self.root / "requirements" / "ci.txt").write_text(line)

    def start(self, *options: str, **settings: str) -> subprocess.Popen[str]:
        """Start a call of sync.py, in a process group of its own."""
        command = [sys.executable, "requirements/sync.py", *options, ".venv", "requirements/ci.txt"]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.variables(settings),
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def call(self, *options: str, **settings: str) -> tuple[int, str]:
        """The exit code and the output of a call of sync.py."""
        process = self.start(*options, **settings)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def make(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Call make."""
        command, env = [str(shutil.which("make")), *arguments], self.variables(settings)
        return subprocess.run(command, cwd=self.root, env=env, check=False, text=True, capture_output=True, timeout=120)

    def variables(self, settings: Mapping[str, str]) -> dict[str, str]:
        """An environment in which pip knows this index and no other."""
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        return {"PATH": os.environ["PATH"], "SMALL_UV_LOG": str(self.root / "uv.log"), **pip, **settings}

    def installed(self) -> str:
        """The version of ``demo`` that the environment imports."""
        command: Sequence[str] = [str(self.environment / "bin" / "python"), "-c", "import demo; print(demo.version)"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def wait_for_uv(self, process: subprocess.Popen[str]) -> None:
        """Wait until a call has come as far as installing the lock."""
        wait_until(lambda: self.uv_calls or process.poll() is not None, "uv is called or the process has ended")
        assert (self.uv_calls, process.poll()) == (1, None)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A clone on which nothing has been set up."""
    (tmp_path / "clone" / "requirements").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    clone = Clone(tmp_path / "clone", tmp_path / "wheels")
    shutil.copy(ROOT / "Makefile", clone.root)
    shutil.copy(ROOT / "requirements" / "sync.py", clone.root / "requirements")
    bootstrap = wheel(clone.wheels, "uv", "0.1", {"uv-0.1.data/scripts/uv": SMALL_UV})
    (clone.root / "requirements" / "bootstrap.txt").write_text(bootstrap)
    clone.lock("1.0")
    return clone


def test_an_environment_is_made_once(clone: Clone) -> None:
    """The first call installs the lock; the next one says nothing, changes nothing and installs nothing."""
    assert clone.call("--check") == (1, "")
    assert clone.call()[0] == 0
    before = (clone.environment / ".complete").stat().st_mtime_ns
    assert (clone.call(), clone.call("--check")) == ((0, ""), (0, ""))
    assert (clone.installed(), clone.uv_calls) == ("1.0", 1)
    assert (clone.environment / ".complete").stat().st_mtime_ns == before


def test_a_changed_lock_is_installed(clone: Clone) -> None:
    """After a pull that changed the lock, the same call brings the environment up to date, in place."""
    clone.call()
    (clone.environment / "kept").touch()
    clone.lock("2.0")
    assert clone.call("--check") == (1, "")
    assert clone.call()[0] == 0
    assert (clone.installed(), (clone.environment / "kept").exists()) == ("2.0", True)


def test_pip_takes_over_where_uv_cannot(clone: Clone) -> None:
    """pip reads pip.conf and uv does not: behind a company's index the set-up is slower and still works."""
    code, output = clone.call(SMALL_UV="fails")
    assert (code, clone.installed()) == (0, "1.0")
    assert "no route to the index" in output
    assert "trying pip" in output


def test_a_package_that_is_not_what_was_locked_is_refused(clone: Clone) -> None:
    """A wheel with another hash ends the set-up; where, why and what next are said, and nothing counts as done."""
    wheel(clone.wheels, "demo", "1.0", {"demo.py": "version = 'changed'\n"})
    code, output = clone.call()
    assert (code, clone.call("--check")[0]) == (5, 1)
    assert ".venv: pip could not install ci.txt" in output
    assert "next: " in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("how", "code", "said"), [(signal.SIGKILL, -9, ""), (signal.SIGINT, 130, "interrupted; the")])
def test_an_interrupted_call_leaves_nothing_that_counts(
    clone: Clone, how: signal.Signals, code: int, said: str
) -> None:
    """Killed or stopped while it installs: the environment is not done, and the next call makes it anew."""
    process = clone.start(SMALL_UV="waits")
    clone.wait_for_uv(process)
    (clone.environment / "half").touch()
    os.killpg(process.pid, how)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, said in output) == (code, True)
    assert clone.call("--check") == (1, "")
    assert clone.call()[0] == 0
    assert (clone.installed(), (clone.environment / "half").exists()) == ("1.0", False)


def test_an_interrupted_update_is_made_anew(clone: Clone) -> None:
    """The old stamp does not outlive the first change, even when the lock goes back to what it was."""
    clone.call()
    clone.lock("2.0")
    (clone.root / "uv.log").unlink()
    process = clone.start(SMALL_UV="waits")
    clone.wait_for_uv(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    clone.lock("1.0")
    assert clone.call("--check") == (1, "")


def test_two_calls_at_once_install_once(clone: Clone) -> None:
    """The second call waits for the first, finds the environment done, and both succeed."""
    processes = [clone.start(), clone.start()]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert ([process.returncode for process in processes], clone.uv_calls) == ([0, 0], 1)
    assert sum("ready after" in output for output in outputs) == 1


def test_a_moved_clone_is_set_up_again(clone: Clone, tmp_path: Path) -> None:
    """Scripts of an environment name its folder, so an environment that was moved or copied is not done."""
    clone.call()
    moved = Clone(clone.root.rename(tmp_path / "moved"), clone.wheels)
    assert moved.call("--check") == (1, "")


NEITHER = "is missing, or is not Python 3.11, 3.12 or 3.13 with venv"


def test_make_says_which_python_is_missing(clone: Clone) -> None:
    """Without a Python of 3.11 or later make says so and what to do, and makes no environment."""
    result = clone.make("setup", "PYTHON=python-that-is-not-here")
    assert (result.returncode, clone.environment.exists()) == (2, False)
    assert f"setup: python-that-is-not-here {NEITHER}" in result.stderr
    assert "next: install one: apt-get install" in result.stderr


def test_make_says_which_python_is_too_old(clone: Clone) -> None:
    """A Python that answers that it is older is refused in the same words."""
    old = clone.root / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = clone.make("setup", f"PYTHON={old}")
    assert (result.returncode, clone.environment.exists()) == (2, False)
    assert f"old-python {NEITHER}" in result.stderr


def programs(folder: Path, **interpreters: str) -> str:
    """A PATH with what make needs and with these scripts; ``_`` in a name stands for a dot."""
    folder.mkdir()
    for name in ("make", "sh", "env"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, script in interpreters.items():
        path = folder / name.replace("_", ".")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return str(folder)


NOT_SELECTED = 'echo "pyenv: $0: command not found" >&2; exit 127'
"""What pyenv's shim of a version does that is not selected."""

CHOSEN = 'case "$*" in *sync.py*) echo "chosen: ${0##*/}";; esac'
"""A Python that fits, and says so instead of making an environment."""


@pytest.mark.parametrize(
    ("interpreters", "chosen"),
    [
        ({"python3_13": CHOSEN, "python3_12": CHOSEN, "python3_11": CHOSEN, "python3": CHOSEN}, "python3.13"),
        ({"python3_13": NOT_SELECTED, "python3_12": "exit 1", "python3_11": CHOSEN, "python3": CHOSEN}, "python3.11"),
        ({"python3": CHOSEN}, "python3"),
    ],
)
def test_make_takes_the_newest_python(
    clone: Clone, tmp_path: Path, interpreters: Mapping[str, str], chosen: str
) -> None:
    """Of 3.13 to 3.11, and then python3. One that does not start, such as a shim of pyenv, is passed over."""
    result = clone.make("setup", PATH=programs(tmp_path / "bin", **interpreters))
    assert (result.returncode, result.stdout) == (0, f"chosen: {chosen}\n"), result.stderr


def test_make_says_how_to_get_a_python_where_there_is_none(clone: Clone, tmp_path: Path) -> None:
    """With the ways of the usual systems."""
    result = clone.make("ci", PATH=programs(tmp_path / "bin", python3="exit 1"))
    assert result.returncode == 2
    assert f"each of python3.13 python3.12 python3.11 python3 {NEITHER}" in result.stderr
    assert all(way in result.stderr for way in ("apt-get", "brew", "uv python", "pyenv", "make ci PYTHON="))


def test_an_environment_keeps_its_python_when_the_lock_changes(clone: Clone, tmp_path: Path) -> None:
    """A newer Python that has come since is for the next environment, not for this one."""
    clone.make("setup", f"PYTHON={sys.executable}")
    clone.lock("2.0")
    (clone.environment / "kept").touch()
    path = f"{programs(tmp_path / 'bin', python3_13=CHOSEN)}{os.pathsep}{os.environ['PATH']}"
    result = clone.make("setup", PATH=path)
    assert (result.returncode, "chosen" in result.stdout) == (0, False), result.stderr
    assert (clone.installed(), (clone.environment / "kept").exists()) == ("2.0", True)


def test_another_python_makes_the_environment_anew(clone: Clone) -> None:
    """When the lock changed and PYTHON names another version: packages of one version are of no use to the other."""
    clone.call()
    settings = clone.environment / "pyvenv.cfg"
    settings.write_text(settings.read_text().replace(f"version = 3.{sys.version_info[1]}.", "version = 3.1."))
    (clone.environment / "kept").touch()
    clone.lock("2.0")
    assert clone.call()[0] == 0
    assert (clone.installed(), (clone.environment / "kept").exists()) == ("2.0", False)


def test_make_sets_up_what_is_missing_and_then_nothing(clone: Clone) -> None:
    """``make setup`` makes the environment; called again it is silent."""
    assert clone.make("setup", f"PYTHON={sys.executable}").returncode == 0
    again = clone.make("setup", f"PYTHON={sys.executable}")
    assert (again.returncode, again.stdout + again.stderr, clone.uv_calls) == (0, "", 1)
