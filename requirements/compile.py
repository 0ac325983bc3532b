"""Compiles the locks from the groups of pyproject.toml: ``python requirements/compile.py [options of uv]``.

``all.txt`` is the one resolution. Every other lock is compiled with it as constraint, so a package has one version
wherever it appears; APART says where not. uv keeps the versions that a lock already names; pass ``--upgrade`` to move
to newer ones, or ``--upgrade-package NAME`` for one of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

EVERYWHERE = ("tasks", "project", "scoring", "local", "docker", "quality", "types")
"""The groups that need no account and install on every Python that the project supports."""

LOCKS: Mapping[str, Sequence[str]] = {
    "all": (*EVERYWHERE, "azureml", "kubernetes", "azure", "supply-chain"),
    "ci": EVERYWHERE,
    "scoring": ("scoring",),
    "front": ("front",),
    "azureml": ("tasks", "project", "azureml"),
    "bootstrap": ("bootstrap",),
}
"""The groups that each lock holds."""

APART = ("mypy", "pathspec")
"""Packages that may have another version elsewhere: azureml-core needs a pathspec below 1.0, and mypy 2, which is
twice as fast as the version before, a later one."""


def compile_lock(name: str, groups: Sequence[str], options: Sequence[str]) -> None:
    """Write ``requirements/NAME.txt``: hashes for every platform, no address of an index."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml"]
    command += ["--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    command += [option for group in groups for option in ("--group", group)]
    lock = HERE / f"{name}.txt"
    command += ["--output-file", f"requirements/{name}.txt", *options]
    if name == "all":
        subprocess.run(command, cwd=ROOT, check=True)
        return
    pins = re.findall(r"^[a-z0-9].*==.*$", (HERE / "all.txt").read_text(encoding="utf-8"), re.MULTILINE)
    shared = "\n".join(pin.rstrip(" \\") for pin in pins if not pin.startswith(APART))
    subprocess.run([*command, "--constraint", "/dev/stdin"], cwd=ROOT, check=True, text=True, input=shared)
    lock.write_text(lock.read_text(encoding="utf-8").replace("/dev/stdin", "requirements/all.txt"), encoding="utf-8")


def main(options: Sequence[str]) -> None:
    """Compile all locks, the resolution first."""
    for name, groups in LOCKS.items():
        print(f"requirements/{name}.txt: {', '.join(groups)}", flush=True)
        compile_lock(name, groups, options)


if __name__ == "__main__":
    main(sys.argv[1:])
