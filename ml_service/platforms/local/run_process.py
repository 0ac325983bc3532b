"""The process of a training run, as the one who submitted it sees it: start, follow, end, and read how it stands.

A run belongs to no parent. It has a session of its own, so that neither Ctrl-C nor the end of the terminal or of the CI
job that submitted it reaches it, and any later process may wait for it or cancel it. Such a process is not the run's
parent and cannot call ``waitpid``; a process id alone proves nothing, because the system gives ids out again.

Therefore each run's directory has a file ``alive`` with a lock (``flock``) on it. The submitter takes the lock and
hands the open file to the process that it starts. The lock belongs to the open file, not to a process: it is held until
the last copy of the file is closed, and the kernel closes the copies when the process ends, however that happens.
Whoever cannot share the lock knows that the run goes on. Whoever can share it knows that the run has ended, and that
``run.json`` is final: a run that is still recorded as running has died without writing a result.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ml_service.platforms.local.run import LOG, read_run
from ml_service.ports import Progress, Run, RunStatus

_POLL_INTERVAL = 0.05
"""Seconds between two reads of a run's log."""

_ALIVE, _PID = "alive", "pid"
_CODE = Path(__file__).resolve().parents[3]
"""Where ``ml_service`` is: the project that a run trains may be in another repository."""


class RunProcess:
    """The process of the run whose directory is ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def start(self, tracking_uri: str) -> None:
        """Start the process, which goes on without this one. The directory holds the run spec and the data."""
        alive_path, log_path = self._directory / _ALIVE, self._directory / LOG
        with alive_path.open("w") as alive, log_path.open("wb") as log:
            fcntl.flock(alive, fcntl.LOCK_EX)
            process = subprocess.Popen(
                [sys.executable, "-m", "ml_service.platforms.local.run", str(self._directory)],
                cwd=_CODE,
                # In the environment: the address may hold a password, and a command line is visible to all.
                env={**os.environ, "MLFLOW_TRACKING_URI": tracking_uri},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[alive.fileno()],
            )
            (self._directory / _PID).write_text(str(process.pid))

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        try:
            with (self._directory / _ALIVE).open("r") as alive:
                fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def follow(self, progress: Progress) -> None:
        """Pass the log's lines to ``progress`` until the process has ended."""
        lines = _tail(self._directory / LOG)
        while self.is_alive():
            _pass_on(lines, progress)
            time.sleep(_POLL_INTERVAL)
        # What was written between the last read and the end.
        _pass_on(lines, progress)

    def terminate(self) -> None:
        """Ask the process to end, if it runs."""
        if self.is_alive():
            os.kill(int((self._directory / _PID).read_text()), signal.SIGTERM)

    def read(self) -> Run:
        """Return how the run stands; one whose process is gone without a result has failed."""
        # Before run.json is read: a run that ends between the two has then written its result.
        alive = self.is_alive()
        run = replace(read_run(self._directory), url=str(self._directory))
        if run.status is RunStatus.RUNNING and not alive:
            return replace(run, status=RunStatus.FAILED, error=_cause_of_death(self._directory), exit_code=5)
        return run


def _tail(path: Path) -> Iterator[str | None]:
    """Yield the lines of a growing file, and None whenever there is no whole line yet."""
    with path.open(encoding="utf-8", errors="replace") as file:
        part = ""
        while True:
            part += file.readline()
            if part.endswith("\n"):
                yield part.rstrip("\n")
                part = ""
            else:
                yield None


def _pass_on(lines: Iterator[str | None], progress: Progress) -> None:
    while (line := next(lines)) is not None:
        progress(line)


def _cause_of_death(directory: Path) -> str:
    lines = (directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    if shutil.disk_usage(directory).free < 1 << 20:
        return f"ended without a result: the disk of {directory} is full"
    return f"ended without a result, perhaps it was killed; its log ends with: {lines[-1] if lines else 'nothing'}"
