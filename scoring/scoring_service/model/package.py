"""The package on disk, and the model in it: loaded only when every hash is right, then asked for predictions."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from scoring_service.errors import PackageError, RequestError, quote
from scoring_service.model.signature import Row, RowReader, Signature

MANIFEST = "manifest.json"
FORMAT = 1
NEXT_STEP = "package the model again: inv package-artifact"

_LOOPS = re.compile(rb"\x22\x04(Loop|Scan)")
"""The type of such a node in the graph's protobuf (field 4, four bytes). A text that looks like it does no harm."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Package:
    """A verified package. ``model_bytes`` is the content whose hash was checked: what is loaded is never read again."""

    directory: Path
    runtime: str
    name: str
    version: str
    sha256: str
    model_file: Path
    model_sha256: str
    model_bytes: bytes = field(repr=False)
    signature: Signature
    examples: tuple[Mapping[str, Any], ...]


class Model(Protocol):
    """What both runtimes offer: the answer to rows that a ``RowReader`` has read."""

    def predict(self, rows: Sequence[Row]) -> Any:
        """The value of ``result``: one entry a row, JSON-encodable."""

    def cancel(self) -> None:
        """Ask a running ``predict`` of another thread to give up soon, where that is possible."""


class Scorer:
    """Request bodies in, response bodies out: the reading of rows, the model and the writing of the answer."""

    def __init__(self, package: Package, model: Model, max_rows: int) -> None:
        self.package = package
        self.is_steady = package.runtime == "onnx" and not _LOOPS.search(package.model_bytes)
        """Whether a small body is sure to take a short time: a script or a loop may take what it likes."""
        self._model = model
        self._reader = RowReader(package.signature, max_rows)
        self._encode = msgspec.json.Encoder(enc_hook=_plain_value).encode
        self.cancel = model.cancel

    def score(self, body: bytes) -> tuple[bytes, int]:
        """``{"data": […]}`` as bytes to ``{"result": […]}`` as bytes, and the number of predictions.

        Raises:
            RequestError: the request is wrong, or the model failed (status 500).
        """
        rows = self._reader.read(body)
        try:
            return self._encode({"result": self._model.predict(rows)}), len(rows)
        except RequestError:
            raise
        except BaseException as error:  # a script may raise, or return, whatever it likes
            raise _failed(error) from error

    def answer(self, body: bytes) -> dict[str, Any]:
        """The same as :meth:`score`, as a value."""
        rows = self._reader.read(body)
        try:
            return {"result": msgspec.to_builtins(self._model.predict(rows), enc_hook=_plain_value)}
        except RequestError:
            raise
        except BaseException as error:
            raise _failed(error) from error


def _failed(error: BaseException) -> RequestError:
    return RequestError(500, "model_failed", f"the model failed: {type(error).__name__}")


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"the model's answer holds a {type(value).__name__}, which is no JSON")


def load(directory: Path, max_rows: int, threads: int = 1) -> Scorer:
    """Verify the package in ``directory``, load its model and try it on the package's first example.

    Raises:
        PackageError: a hash is wrong, or the model does not load, fit its signature or answer.
    """
    package = read_package(directory)
    loader: Callable[[Package, int], Model] = {"onnx": _load_onnx, "script": _load_script}[package.runtime]
    scorer = Scorer(package, loader(package, threads), max_rows)
    for example in package.examples[:1]:
        try:
            scorer.score(msgspec.json.encode(example["request"]))
        except RequestError as error:
            why = f"{error.place}: {error.message}" if error.place else error.message
            cause = f" ({quote(str(error.__cause__))[1:-1]})" if error.__cause__ else ""
            raise PackageError(
                f"the model cannot answer the package's own example: {why}{cause}",
                where=str(package.model_file),
                next_step="compare model, signature.json and examples.json",
            ) from error
    return scorer


def read_package(directory: Path) -> Package:
    """Read the manifest and compare every file with its SHA-256; raises PackageError naming each that differs."""
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise PackageError(f"has format {manifest['format']}, this version reads {FORMAT}", where=str(path))
        model, runtime = manifest["model"], str(manifest["runtime"])
        hashes = {str(name): str(digest) for name, digest in manifest["files"].items()}
        names = [str(model[key]) for key in ("file", "signature", "examples")]
        identity = str(model["name"]), str(model["version"])
    except FileNotFoundError:
        raise PackageError("there is no package here", where=str(directory), next_step=NEXT_STEP) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"is not a package's manifest ({error!r})", where=str(path), next_step=NEXT_STEP) from None
    if runtime not in ("onnx", "script"):
        raise PackageError(f"has the unknown runtime {quote(runtime)}", where=str(path), next_step=NEXT_STEP)
    _refuse_other_files(directory, hashes)
    kept = {name: b"" for name in names}
    for name, digest in hashes.items():
        actual = _read_checked(directory, name, digest)
        if name in kept:
            kept[name] = actual
    if missing := [name for name in names if name not in hashes]:
        raise PackageError(f"has no hash of {', '.join(missing)}", where=str(path), next_step=NEXT_STEP)
    return Package(
        directory=directory,
        runtime=runtime,
        name=identity[0],
        version=identity[1],
        sha256=hashlib.sha256(content).hexdigest(),
        model_file=directory / names[0],
        model_sha256=hashes[names[0]],
        model_bytes=kept[names[0]],
        signature=Signature.from_json(kept[names[1]], str(directory / names[1])),
        examples=_examples(kept[names[2]], str(directory / names[2])),
    )


def _refuse_other_files(directory: Path, hashes: Mapping[str, str]) -> None:
    """A file that nobody vouched for could be imported by a script. Byte code is left out: no script's is ever read."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if name not in hashes and name != MANIFEST:
            raise PackageError(f"{name} does not belong here", where=str(directory), next_step=NEXT_STEP)


def _read_checked(directory: Path, name: str, digest: str) -> bytes:
    path = directory / name
    try:
        content = path.read_bytes()
    except OSError:
        raise PackageError(f"{name} is missing", where=str(directory), next_step=NEXT_STEP) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise PackageError(f"{name} was changed after packaging", where=str(directory), next_step=NEXT_STEP)
    return content


def _examples(raw: bytes, where: str) -> tuple[Mapping[str, Any], ...]:
    try:
        examples = tuple(json.loads(raw)["examples"])
        for example in examples:
            example["request"]["data"], example["response"]
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError(f"holds no examples ({error!r})", where=where, next_step="train again") from None
    return examples


# Runtime onnx


_NUMPY_TYPES: Mapping[str, Any] = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


class OnnxModel:
    """An ONNX graph, run by ONNX Runtime with ``threads`` threads; it accepts one tensor, or one tensor an input."""

    def __init__(self, content: bytes, signature: Signature, threads: int, where: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._new_run_options = onnxruntime.RunOptions
        self._run_options = self._quiet_options()
        self._run = session.run
        self._output = [session.get_outputs()[0].name]
        self._scalar = len(signature.outputs) == 1
        self._width = len(signature.inputs)
        inputs = session.get_inputs()
        try:
            self._dtypes = {entry.name: _NUMPY_TYPES[entry.type] for entry in inputs}
        except KeyError as error:
            raise PackageError(f"the model takes a {error}, which no signature describes", where=where) from None
        one_tensor = len(inputs) == 1 and (self._width > 1 or inputs[0].name != signature.inputs[0].name)
        self._tensors = self._one_tensor if one_tensor else self._tensor_each
        self._names = [entry.name for entry in inputs] if one_tensor else [column.name for column in signature.inputs]
        _check_inputs(self._dtypes, self._names, signature, where)

    def predict(self, rows: Sequence[Row]) -> Any:
        """The first output, as lists."""
        answer = self._run(self._output, self._tensors(rows), self._run_options)[0]
        if len(answer) != len(rows):
            raise ValueError(f"{len(answer)} answers for {len(rows)} rows")
        return answer.ravel().tolist() if self._scalar else answer.tolist()

    def cancel(self) -> None:
        """Stop the run at its next operator; later runs get fresh options."""
        self._run_options.terminate = True
        self._run_options = self._quiet_options()

    def _quiet_options(self) -> Any:
        options = self._new_run_options()
        options.log_severity_level = 4  # a run that is stopped would write a line of its own, past our log
        return options

    def _one_tensor(self, rows: Sequence[Row]) -> dict[str, Array]:
        name = self._names[0]
        count = len(rows) * self._width
        values = np.fromiter(chain.from_iterable(rows), self._dtypes[name], count)
        return {name: values.reshape(len(rows), self._width)}

    def _tensor_each(self, rows: Sequence[Row]) -> dict[str, Array]:
        columns = zip(*rows, strict=True)
        return {
            name: np.array(values, self._dtypes[name]).reshape(-1, 1)
            for name, values in zip(self._names, columns, strict=True)
        }


def _check_inputs(dtypes: Mapping[str, Any], names: Sequence[str], signature: Signature, where: str) -> None:
    """Every tensor of the model is fed, and none with text where it wants numbers."""
    if set(dtypes) != set(names):
        model, signed = ", ".join(sorted(dtypes)), ", ".join(sorted(names))
        raise PackageError(f"the model's inputs are {model}, the signature's {signed}", where=where)
    one = names[0] if len(names) == 1 else None
    for column in signature.inputs:
        wants_text = dtypes[one or column.name] is np.object_
        if wants_text != (column.type == "string"):
            raise PackageError(f"input {column.name} is a {column.type} in the signature only", where=where)


def _load_onnx(package: Package, threads: int) -> Model:
    try:
        return OnnxModel(package.model_bytes, package.signature, threads, str(package.model_file))
    except PackageError:
        raise
    except Exception as error:  # ONNX Runtime raises classes of its own without a common base
        raise PackageError(
            f"ONNX Runtime cannot load the model ({quote(str(error))[1:-1]})", where=str(package.model_file)
        ) from error


# Runtime script


class ScriptModel:
    """The project's own ``score.py``: ``init()`` once, then ``run(raw)`` with rows in the signature's order."""

    def __init__(self, module: ModuleType) -> None:
        self._run = module.run

    def predict(self, rows: Sequence[Row]) -> Any:
        """What the script answers: ``{"result": […]}``, the list itself, or either as JSON text."""
        answer = self._run(msgspec.json.encode({"data": rows}).decode())
        if isinstance(answer, str | bytes):
            answer = msgspec.json.decode(answer)
        if isinstance(answer, Mapping):
            answer = answer["result"]
        answer = answer.tolist() if isinstance(answer, np.ndarray) else answer
        if not isinstance(answer, list) or len(answer) != len(rows):
            raise ValueError(f"run() must return one result a row, {len(rows)} here")
        return msgspec.to_builtins(answer, enc_hook=_plain_value)

    def cancel(self) -> None:
        """Python cannot stop a thread: a script that hangs costs its worker."""


def _load_script(package: Package, threads: int) -> Model:
    del threads  # a script's threads are its own affair
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
    return ScriptModel(module)


class _CheckedSource(SourceFileLoader):
    """Compiles the source whose hash was checked. Python by itself would take byte code that lies beside it, which has
    none."""

    def path_stats(self, path: Any) -> Any:
        """Byte code is looked for only where this is known."""
        raise OSError(f"{path}: byte code is not used")


def _finder_below(folder: Path) -> Callable[[str], FileFinder]:
    def finder(path: str) -> FileFinder:
        if not Path(path).is_relative_to(folder):
            raise ImportError  # the next one in sys.path_hooks may know it
        return FileFinder(path, (_CheckedSource, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))

    return finder


def _import_script(package: Package) -> ModuleType:
    """The script as a module of its own name, made of the very bytes that were checked; it can import its siblings."""
    name = "project_score"
    spec = importlib.util.spec_from_file_location(name, package.model_file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path_hooks.insert(0, _finder_below(package.model_file.parent))
    sys.path.append(str(package.model_file.parent))
    exec(compile(package.model_bytes, str(package.model_file), "exec"), module.__dict__)
    return module
