"""From request bodies to response bodies: load the model of a package and score with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from scoring_service.errors import PackageError, RequestError, quote
from scoring_service.model import onnx, script
from scoring_service.model.package import Package, read_package
from scoring_service.model.rows import RowReader
from scoring_service.model.signature import Row

_LOOPS = re.compile(rb"\x22\x04(Loop|Scan)")
"""The type of such a node in the graph's protobuf (field 4, four bytes). A false match only costs the fast path."""


class Model(Protocol):
    """The interface of a runtime."""

    def predict(self, rows: Sequence[Row]) -> Any:
        """Return the value of ``result``: a list with one entry per row, which JSON can encode."""

    def cancel(self) -> None:
        """Make a running ``predict`` of another thread return soon, if that is possible."""


class Scorer:
    """Read the rows of a request body, predict, encode the response body."""

    def __init__(self, package: Package, model: Model, max_rows: int) -> None:
        self.package = package
        self.is_steady = package.runtime == "onnx" and not _LOOPS.search(package.model_bytes)
        """True where the size of a body tells how long it takes. A script or a loop may take any time."""
        self._model = model
        self._reader = RowReader(package.signature, max_rows)
        self._encode = msgspec.json.Encoder().encode
        self.cancel = model.cancel

    def score(self, body: bytes) -> tuple[bytes, int]:
        """Return ``{"result": […]}`` as bytes for ``{"data": […]}``, and the number of predictions.

        Raises:
            RequestError: the request is invalid, or the model failed (status 500).
        """
        rows = self._reader.read(body)
        try:
            return self._encode({"result": self._model.predict(rows)}), len(rows)
        except BaseException as error:  # a script may raise or return anything
            raise _failure(error) from error

    def answer(self, body: bytes) -> dict[str, Any]:
        """Return the same as :meth:`score` as a value.

        Raises:
            RequestError: the request is invalid, or the model failed (status 500).
        """
        rows = self._reader.read(body)
        try:
            return {"result": self._model.predict(rows)}
        except BaseException as error:
            raise _failure(error) from error


def _failure(error: BaseException) -> RequestError:
    return RequestError(500, "model_failed", f"the model failed: {type(error).__name__}")


def load(directory: Path, max_rows: int, threads: int = 1) -> Scorer:
    """Verify the package in ``directory``, load its model and score the package's first example.

    ``threads`` is the number of threads of ONNX Runtime in one prediction.

    Raises:
        PackageError: a hash differs, or the model does not load, match its signature or answer.
        ConfigurationError: ONNX Runtime cannot be imported.
    """
    package = read_package(directory)
    model: Model = onnx.load(package, threads) if package.runtime == "onnx" else script.load(package)
    scorer = Scorer(package, model, max_rows)
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
