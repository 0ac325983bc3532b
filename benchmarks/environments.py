"""Environments of their own for the peers: what does not fit beside us is installed elsewhere, pinned by hash.

They hold the libraries that ours holds, pandas and pyarrow above all: scikit-learn imports those where it finds them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parent / "peers"


def peer_python(name: str) -> Path:
    """Return the interpreter of the peer whose lock is ``peers/NAME.txt``; make its environment if there is none.

    Environments are kept below BENCHMARKS_HOME (default: ``~/.cache/mlops-benchmarks``).
    """
    lock = LOCKS / f"{name}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    environment = _home() / f"{name}-{digest}"
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        print(f"installing {name}", file=sys.stderr)
        shutil.rmtree(environment, ignore_errors=True)
        _uv("venv", "--quiet", "--python", sys.executable, str(environment))
        _uv("pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(lock))
        subprocess.run([python, "-m", "compileall", "-q", str(environment / "lib")], stdout=subprocess.DEVNULL)
        (environment / "complete").touch()
    return python


def _home() -> Path:
    return Path(os.environ.get("BENCHMARKS_HOME", Path.home() / ".cache" / "mlops-benchmarks"))


def _uv(*arguments: str) -> None:
    # Our environment is made with uv, and holds it.
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    subprocess.run([uv or "uv", *arguments], check=True)
