"""What the architecture tests look at: the files that belong to the repository, and what they import."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def repository_files(root: Path = ROOT) -> list[Path]:
    """Every file that is committed or would be: what git ignores is left out."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [root / name for name in listing.split("\0") if name and (root / name).is_file()]


def imported_modules(source: str) -> Iterator[str]:
    """The full name of every module that a Python source imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def imported_packages(source: str) -> set[str]:
    """The top-level packages that a Python source imports."""
    return {name.split(".")[0] for name in imported_modules(source)}
