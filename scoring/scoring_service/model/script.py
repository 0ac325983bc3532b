"""The runtime ``script``: the project's own ``score.py``, with the modules beside it.

Those modules share a process with the service and its libraries, or with Azure ML's server. None of these may shadow
another:

- The folder of the script is searched before all others for modules that are not loaded yet. A ``schema.py`` beside the
  script is the project's, whatever else ``sys.path`` offers under that name: a file of a server, an installed package.
- The names of Python's standard library are excepted, because the service imports some of them late.
- The service's own modules are below ``scoring_service``, which is loaded before.
- All modules keep their plain names: pickles made by the project refer to them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from scoring_service.errors import PackageError, plain, quote
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
    try:
        module = _import_script(package)
        module.init()
        if not callable(getattr(module, "run", None)):
            raise AttributeError("it has no run()")
    except (Exception, SystemExit) as error:
        raise _start_failure(error, package.model_file) from error
    return ScriptModel(module.run)


def _start_failure(error: BaseException, script: Path) -> PackageError:
    """Return the error of a script that does not start. It names the line of the project and the missing module."""
    folder = f"{script.parent.absolute()}{os.sep}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    line = f" at {plain(frames[-1].filename.removeprefix(folder))}:{frames[-1].lineno}" if frames else ""
    what = f"the script does not start{line} ({type(error).__name__}: {quote(str(error))[1:-1]})"
    return PackageError(what, where=str(script), next_step=_next_step(error))


def _next_step(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"put {plain(error.name)} beside the script, or lock it in model/requirements.txt and install that"
    if isinstance(error, ImportError):
        return f"correct the script, or the version of {plain(error.name or 'the module')}"
    return "call the script's init() where the libraries of model/requirements.txt are installed"


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


class _SiblingFinder(MetaPathFinder):
    """Find top-level modules in the folder of the script, except those of the standard library."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a module of the project, or None. Its submodules are found through its ``__path__``."""
        if path is not None or name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name, [self._folder])
        return spec if spec is not None and spec.loader is not None else None  # a mere folder claims no name


def _import_script(package: Package) -> ModuleType:
    """Execute the very bytes whose hash was verified, as a module that can import its siblings."""
    name = "project_score"
    script = package.model_file.absolute()
    folder = script.parent
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path_hooks.insert(0, _finder_below(folder))
    for path in [path for path in sys.path_importer_cache if Path(path).is_relative_to(folder)]:
        del sys.path_importer_cache[path]  # found by the hooks of before, which may take byte code
    sys.meta_path.insert(0, _SiblingFinder(folder))
    sys.path.append(str(folder))
    exec(compile(package.model_bytes, str(script), "exec"), module.__dict__)
    return module
