"""A fork server: a process that has imported the SDK and forks for each step, which saves three seconds a step.

Run as a script, so that nothing but the SDK is loaded. Requests come as JSON lines on standard input:
``{"id", "arguments", "folder", "environment", "log"}``. Responses go to standard output: ``{"id", "pid"}`` when the
step has started, ``{"id", "code"}`` when it has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import sys
import threading
import traceback
from typing import Any


def main() -> None:
    """Serve requests until standard input ends."""
    import azureml.core
    import azureml.pipeline.core  # noqa: F401

    running: dict[int, str] = {}
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02 if running else None)
        if readable:
            received = os.read(0, 1 << 16)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                _start(json.loads(line), running)
        _reap(running)


def _start(request: dict[str, Any], running: dict[int, str]) -> None:
    pid = os.fork()
    if not pid:
        os._exit(_run(request))
    running[pid] = request["id"]
    _say(id=request["id"], pid=pid)


def _reap(running: dict[int, str]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _say(id=running.pop(pid), code=os.waitstatus_to_exitcode(status))


def _say(**answer: object) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _run(request: dict[str, Any]) -> int:
    """In the child: become the step, and return its exit code."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    script, *_ = sys.argv = request["arguments"]
    sys.path.insert(0, request["folder"])
    code = _execute(script)
    with contextlib.suppress(BaseException):
        # The interpreter would wait for threads first, and so does this. It would then run the exit functions, of which
        # that of the SDK's native reader takes three seconds. They are skipped: a step must have sent what it has to.
        threading._shutdown()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _execute(script: str) -> int:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
