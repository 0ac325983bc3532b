"""A model directory: an ONNX graph and its signature, as docs/project-contract.md defines them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diabetes_regression.data import FEATURES, Dataset, Values
from diabetes_regression.errors import DataError
from diabetes_regression.files import read_bytes, read_object

MODEL = "model/model.onnx"
SIGNATURE = "model/signature.json"

_TYPES = {"tensor(double)": np.float64, "tensor(float)": np.float32}


def run_onnx(content: bytes, features: Values) -> Values:
    """Return the answers of the ONNX model ``content`` for ``features`` ``[rows, columns]``: ``[rows]``.

    Raises:
        ValueError: the model cannot be loaded or run, or does not give one finite number for each row.
    """
    import onnxruntime  # here, so that --help and the steps without a model do not wait for it

    onnxruntime.set_default_logger_severity(4)  # what goes wrong is raised, and said once
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        tensor = session.get_inputs()[0]
        answers = session.run(None, {tensor.name: features.astype(_TYPES[tensor.type])})[0]
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise ValueError(f"ONNX Runtime refuses it ({_first_line(error)})") from error
    return _one_for_each_row(np.asarray(answers), len(features))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _one_for_each_row(answers: Any, rows: int) -> Values:
    if answers.shape not in ((rows,), (rows, 1)):
        raise ValueError(f"it answers {rows} rows with values of shape {list(answers.shape)}")
    values = answers.reshape(rows).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it answers with values that are not finite")
    return np.asarray(values)


def score_directory(directory: Path, data: Dataset, role: str) -> Values:
    """Return the answers of the model in ``directory`` for every row of ``data``: ``[rows]``.

    ``role`` (candidate or champion) is named in the error.

    Raises:
        DataError: the model cannot be loaded or scored.
    """
    next_step = _next_step(role)
    names = _input_names(directory / SIGNATURE, role, next_step)
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise DataError(
            str(directory / SIGNATURE),
            f"the {role} needs the column {unknown[0]!r}, which is not in the data",
            next_step,
        )
    features = data.features[:, [FEATURES.index(name) for name in names]]
    content = read_bytes(directory / MODEL, next_step)
    try:
        return run_onnx(content, features)
    except ValueError as error:
        raise DataError(str(directory / MODEL), f"the {role} cannot be scored: {error}", next_step) from error


def _input_names(path: Path, role: str, next_step: str) -> Sequence[str]:
    inputs = read_object(path, next_step).get("inputs")
    try:
        names = [str(entry["name"]) for entry in inputs or ()]
    except (TypeError, KeyError) as error:
        raise DataError(str(path), f"the {role}'s signature is not one", next_step) from error
    if not names:
        raise DataError(str(path), f"the {role}'s signature names no inputs", next_step)
    return names


def _next_step(role: str) -> str:
    if role == "champion":
        return "withdraw that version, so that the one before it is compared, and train again"
    return "run train again"
