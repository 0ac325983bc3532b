"""Runs one command, and sees to it that nothing of it outlives the supervisor.

``watchdog.py GRACE_SECONDS DIRECTORY COMMAND …``: the supervisor holds the other end of standard input. When it closes,
whatever ended the supervisor, the command is asked to stop, and then its whole process group is killed. SIGTERM is
passed on. The exit code is the command's. It imports nothing of ours, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command in the directory, to its end."""
    grace, directory, *command = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    child = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    if stop.is_set():
        child.terminate()
    threading.Thread(target=_follow_supervisor, args=(child, float(grace)), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _follow_supervisor(child: subprocess.Popen[bytes], grace: float) -> None:
    """Blocks until the supervisor is gone, then ends everything that was started here."""
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
