"""Makes one environment hold exactly one lock, and does nothing when it already does.

``PYTHON requirements/sync.py ENVIRONMENT LOCK`` needs Python's standard library and nothing else, because it runs
before anything is installed; ``--check`` only says, by its exit code, whether there is something to do.

An environment counts as done when its stamp names this lock, this folder and this Python. The stamp goes away before
the first change and comes back, by a rename, after the last one. So a call that was interrupted leaves an environment
without a stamp, and the next call makes that one anew. Calls at the same time queue behind a lock on this folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
BOOTSTRAP = HERE / "bootstrap.txt"
OLDEST = (3, 11)
CONFIGURATION_EXIT_CODE = 4
UNAVAILABLE_EXIT_CODE = 5
UV_CHATTER = (" + ", " - ", " ~ ")
PIP_CHATTER = ("  ", "Using cached", "Installing collected", "Successfully", "Looking in", "Ignoring", "WARNING: Loc")


class SetupError(Exception):
    """The environment cannot be made. The message is for a person; ``exit_code`` is that of the error's kind."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def stamp_text(environment: Path, lock: Path) -> str:
    """Return the content of a finished environment's stamp. It differs when the lock, the path or the Python does."""
    digest = hashlib.sha256(lock.read_bytes())
    digest.update(f"{environment.absolute()} {sys.version_info[:2]}".encode())
    return digest.hexdigest()


def stamp_of(environment: Path) -> Path:
    """Return the path of the file that exists only in a finished environment."""
    return environment / ".complete"


def python_of(environment: Path) -> Path:
    """Return the path of the environment's interpreter."""
    return environment / "bin" / "python"


def is_current(environment: Path, lock: Path) -> bool:
    """Return whether ``environment`` was finished for this very lock and still has its Python."""
    stamp = stamp_of(environment)
    usable = stamp.is_file() and python_of(environment).exists()
    return usable and stamp.read_text().strip() == stamp_text(environment, lock)


def sync(environment: Path, lock: Path) -> None:
    """Make ``environment`` hold the packages of ``lock``, each checked against its hash, and no others."""
    with one_at_a_time():
        if is_current(environment, lock):
            return
        started = time.monotonic()
        say(f"{environment}: installing {lock.name}; the first time this takes a minute or two")
        install(environment, lock)
        write_stamp(environment, lock)
        say(f"{environment}: ready after {time.monotonic() - started:.0f} s")


def install(environment: Path, lock: Path) -> None:
    """Change a finished environment in place where it has uv; make any other anew."""
    needed = (stamp_of(environment), python_of(environment), environment / "bin" / "uv")
    in_place = all(path.exists() for path in needed) and is_of_this_python(environment)
    stamp_of(environment).unlink(missing_ok=True)
    if not in_place:
        create(environment)
        pip(environment, BOOTSTRAP)
    if uv_sync(environment, lock) != 0:
        # uv does not read pip.conf, so where the index is a company's own, pip is the one that gets there.
        say("uv could not install the lock (its reason is above); trying pip, which is slower")
        create(environment)
        pip(environment, lock)


def is_of_this_python(environment: Path) -> bool:
    """Return whether ``environment`` was made with a Python of this minor version, whose packages it can go on with."""
    major, minor = sys.version_info[:2]
    return f"version = {major}.{minor}." in (environment / "pyvenv.cfg").read_text()


def create(environment: Path) -> None:
    """An empty environment with pip, in place of whatever is there."""
    command = [sys.executable, "-m", "venv", "--clear", str(environment)]
    result = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment:\n{result.stdout.strip()}\n"
            "next: install its venv module (Debian and Ubuntu: apt-get install python3-venv), or set PYTHON to another",
            CONFIGURATION_EXIT_CODE,
        )


def pip(environment: Path, lock: Path) -> None:
    """Install a lock with the environment's pip."""
    command = [str(python_of(environment)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--require-hashes", "--requirement", str(lock)]
    if stream(command, hidden=PIP_CHATTER) != 0:
        raise SetupError(
            f"{environment}: pip could not install {lock.name}; its reason is above\n"
            "next: check the network and the index in pip's configuration (pip config list), then call this again",
            UNAVAILABLE_EXIT_CODE,
        )


def uv_sync(environment: Path, lock: Path) -> int:
    """Let the environment's uv install ``lock`` and remove what is not in it; returns uv's exit code."""
    # The system's certificates, as pip uses them: behind a company's proxy uv's own list is not enough.
    settings = {"UV_SYSTEM_CERTS": "1"} if "SSL_CERT_FILE" not in os.environ else {}
    command = [str(environment / "bin" / "uv"), "pip", "sync", "--require-hashes"]
    command += ["--python", str(python_of(environment)), str(lock)]
    return stream(command, hidden=UV_CHATTER, settings=settings)


def stream(command: Sequence[str], *, hidden: tuple[str, ...], settings: Mapping[str, str] | None = None) -> int:
    """Run a command and pass on what it says, but for the lines that list packages; returns its exit code."""
    environment = {**os.environ, **(settings or {})}
    try:
        process = subprocess.Popen(
            command, env=environment, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        say(f"{command[0]} cannot be started: {error.strerror}")
        return 127
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() and not line.startswith(hidden):
                say(line.rstrip())
    return process.returncode


def write_stamp(environment: Path, lock: Path) -> None:
    """Declare the environment finished, in one step."""
    unfinished = environment / ".complete.new"
    unfinished.write_text(stamp_text(environment, lock) + "\n")
    unfinished.replace(stamp_of(environment))


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends."""
    folder = os.open(HERE, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another call is setting up an environment here; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def say(line: str) -> None:
    """Progress, for a person who waits."""
    print(f"setup: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    check_only = "--check" in arguments
    environment, lock = (Path(a) for a in arguments if a != "--check")
    if check_only:
        return 0 if is_current(environment, lock) else 1
    try:
        if sys.version_info < OLDEST:
            raise SetupError(f"Python {sys.version.split()[0]} is too old; 3.11 is needed", CONFIGURATION_EXIT_CODE)
        sync(environment, lock)
        if os.environ.get("TF_BUILD"):
            # The steps after this one then call the tasks by name.
            print(f"##vso[task.prependpath]{environment.absolute() / 'bin'}", flush=True)
    except SetupError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say(f"interrupted; the next call makes {environment} anew")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
