"""Run one command, and end it with everything that it started when the supervisor ends.

``watchdog.py GRACE_SECONDS DIRECTORY COMMAND …``: the supervisor holds the other end of standard input. When that end
closes, the command is asked to stop, and then its whole process group is killed. SIGTERM is passed on. The exit code is
the command's.

Why a pipe: the system closes it however the supervisor ends, also by SIGKILL, when no handler and no ``finally`` runs.
PR_SET_PDEATHSIG exists on Linux only, and follows the thread that started the child, not the process. Polling the
parent's pid would be late, and the pid may be given to another process. The command itself does not inherit the
pipe: its standard input is /dev/null.

This file imports nothing of ours, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command in the directory and return its exit code."""
    grace, directory, *command = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    child = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    if stop.is_set():
        child.terminate()
    threading.Thread(target=_end_with_supervisor, args=(child, float(grace)), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _end_with_supervisor(child: subprocess.Popen[bytes], grace: float) -> None:
    """Wait until the supervisor has ended, then end everything that was started here."""
    while os.read(0, 1):
        pass
    child.terminate()
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
