"""The runtime ``onnx``: a graph, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring_service.errors import PackageError, import_failure, quote
from scoring_service.model.package import Package
from scoring_service.model.signature import Row, Signature

Array = npt.NDArray[Any]

_NUMPY_TYPES: Mapping[str, Any] = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


class OnnxModel:
    """A session of ``threads`` threads.

    The graph takes one tensor of shape [rows, columns], or one tensor of shape [rows, 1] per input of the signature.
    """

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
        """Return the first output as lists: a value per row, or a list of values if the signature has several outputs.

        Raises:
            ValueError: the model returns another number of rows.
        """
        answer = self._run(self._output, self._tensors(rows), self._run_options)[0]
        if len(answer) != len(rows):
            raise ValueError(f"{len(answer)} answers for {len(rows)} rows")
        return answer.ravel().tolist() if self._scalar else answer.tolist()

    def cancel(self) -> None:
        """Stop the current run at its next operator. Later runs have new options."""
        self._run_options.terminate = True
        self._run_options = self._quiet_options()

    def _quiet_options(self) -> Any:
        options = self._new_run_options()
        options.log_severity_level = 4  # a stopped run would write a line of its own, bypassing our log
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
    """Check that every input of the model gets a tensor, and that text goes to text only."""
    if set(dtypes) != set(names):
        model, signed = ", ".join(sorted(dtypes)), ", ".join(sorted(names))
        raise PackageError(f"the model's inputs are {model}, the signature's {signed}", where=where)
    one = names[0] if len(names) == 1 else None
    for column in signature.inputs:
        wants_text = dtypes[one or column.name] is np.object_
        if wants_text != (column.type == "string"):
            raise PackageError(f"input {column.name} is a {column.type} in the signature only", where=where)


def load(package: Package, threads: int) -> OnnxModel:
    """Load the graph of a verified package.

    Raises:
        PackageError: ONNX Runtime refuses the graph, or it does not match the signature.
        ConfigurationError: ONNX Runtime cannot be imported.
    """
    try:
        return OnnxModel(package.model_bytes, package.signature, threads, str(package.model_file))
    except PackageError:
        raise
    except ImportError as error:
        raise import_failure(error) from error
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise PackageError(
            f"ONNX Runtime cannot load the model ({quote(str(error))[1:-1]})", where=str(package.model_file)
        ) from error
