"""The runtime ``script``: the project's own ``score.py``, with the modules beside it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from scoring_service.errors import PackageError, quote
from scoring_service.model.package import Package
from scoring_service.model.signature import Row


class ScriptModel:
    """The script's ``run(raw)``, called with the rows as JSON in the signature's order."""

    def __init__(self, run: Callable[[str], Any]) -> None:
        self._run = run

    def predict(self, rows: Sequence[Row]) -> Any:
        """Return the list that ``run`` returns: as ``{"result": […]}``, as itself, as an array, or either as JSON text.

        Raises:
            ValueError: it is not a list of one result per row.
        """
        answer = self._run(msgspec.json.encode({"data": rows}).decode())
        if isinstance(answer, str | bytes):
            answer = msgspec.json.decode(answer)
        if isinstance(answer, Mapping):
            answer = answer["result"]
        answer = answer.tolist() if isinstance(answer, np.ndarray) else answer
        if not isinstance(answer, list) or len(answer) != len(rows):
            raise ValueError(f"run() must return one result per row, {len(rows)} here")
        return msgspec.to_builtins(answer, enc_hook=_plain_value)

    def cancel(self) -> None:
        """Do nothing: Python cannot stop a thread. A script that hangs costs its worker."""


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"the model's answer contains a {type(value).__name__}, which JSON cannot encode")


def load(package: Package) -> ScriptModel:
    """Import the script of a verified package and call its ``init()``.

    Raises:
        PackageError: the script cannot be imported, its ``init()`` fails, or it has no ``run()``.
    """
    where = str(package.model_file)
    try:
        module = _import_script(package)
        module.init()
        if not callable(getattr(module, "run", None)):
            raise AttributeError("it has no run()")
    except (Exception, SystemExit) as error:
        what = f"the script does not start ({type(error).__name__}: {quote(str(error))[1:-1]})"
        next_step = "install model/requirements.txt, then call its init()"
        raise PackageError(what, where=where, next_step=next_step) from error
    return ScriptModel(module.run)


class _VerifiedSource(SourceFileLoader):
    """Compile the source whose hash was verified. By default Python prefers byte code beside it, which has no hash."""

    def path_stats(self, path: Any) -> Any:
        """Raise OSError. Without these figures Python does not look for byte code."""
        raise OSError(f"{path}: byte code is not used")


def _finder_below(folder: Path) -> Callable[[str], FileFinder]:
    def finder(path: str) -> FileFinder:
        if not Path(path).is_relative_to(folder):
            raise ImportError  # leave it to the next entry of sys.path_hooks
        return FileFinder(path, (_VerifiedSource, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))

    return finder


def _import_script(package: Package) -> ModuleType:
    """Execute the very bytes whose hash was verified, as a module that can import its siblings."""
    name = "project_score"
    spec = importlib.util.spec_from_file_location(name, package.model_file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path_hooks.insert(0, _finder_below(package.model_file.parent))
    sys.path.append(str(package.model_file.parent))
    exec(compile(package.model_bytes, str(package.model_file), "exec"), module.__dict__)
    return module
