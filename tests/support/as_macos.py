"""Run a program as a Python without the calls that macOS does not have: ``python as_macos.py PROGRAM [ARGUMENT…]``."""

from __future__ import annotations

import os
import runpy
import signal
import sys

for module, names in ((signal, ("sigtimedwait", "sigwaitinfo", "pidfd_send_signal")), (os, ("pidfd_open", "accept4"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
