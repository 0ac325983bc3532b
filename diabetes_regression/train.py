"""The step ``train``: fit a ridge regression, turn it into ONNX, and keep it only if ONNX answers the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from diabetes_regression import plots
from diabetes_regression.data import FEATURES, TARGET, Dataset, Values, load, split
from diabetes_regression.errors import DataError
from diabetes_regression.files import to_json, write_candidate
from diabetes_regression.gate import METRICS
from diabetes_regression.model import MODEL, SIGNATURE, run_onnx
from diabetes_regression.parameters import Parameters, read_parameters

TOLERANCE = 1e-6
"""How far an endpoint's answer may be from the trained model's; relative, absolute below 1."""

EXPORT_TOLERANCE = 1e-9
"""How far the ONNX model may be from scikit-learn's; a model in single precision misses it by far."""

VALIDATE = "look at it with: inv validate-data --data FILE"

OPSET, IR_VERSION = 17, 8
"""Of ONNX 1.12 (2022): old enough for any runtime in service, and all that two operators need."""


class Regressor(Protocol):
    """A fitted model as scikit-learn shapes it."""

    coef_: Values
    intercept_: float

    def predict(self, features: Values) -> Values:
        """``[rows, 10]`` to ``[rows]``."""
        ...


def train(data: Path, parameters: Path, output: Path) -> str:
    """Train on ``data`` and write the candidate to ``output``; say in one line how good it is.

    Raises:
        DataError: the data or the parameters are not fit, or the ONNX model differs from the trained one.
        StorageError: the candidate cannot be written.
    """
    chosen = read_parameters(parameters)
    rows = load(data)
    trained_on, held_out = (rows.take(part) for part in split(len(rows), chosen.test_size, chosen.random_state))
    model = fit(trained_on, chosen, str(data))
    predicted = model.predict(held_out.features)
    metrics = {name: float(metric(held_out.target, predicted)) for name, metric in METRICS.items()}
    check_finite(metrics, str(data))
    write_candidate(output, candidate_files(model, trained_on, held_out, metrics))
    return f"{output}: trained on {len(trained_on)} rows; on {len(held_out)} held-out rows mse {metrics['mse']:.6f}"


def fit(rows: Dataset, parameters: Parameters, where: str = "the data") -> Regressor:
    """Ridge regression, scikit-learn's, with the penalty ``alpha``.

    Raises:
        DataError: no model comes of these rows, such as with values too large to be squared.
    """
    from sklearn.linear_model import Ridge  # three seconds: bad data and parameters are refused before

    try:
        with np.errstate(all="ignore"):
            model: Regressor = Ridge(alpha=parameters.alpha).fit(rows.features, rows.target)
    except ValueError as error:
        raise DataError(where, f"no model comes of it: {error}", VALIDATE) from error
    if not (np.isfinite(model.coef_).all() and np.isfinite(model.intercept_)):
        raise DataError(where, "no model comes of it: a coefficient is not finite", VALIDATE)
    return model


def check_finite(metrics: dict[str, float], where: str) -> None:
    """Refuse metrics that are no numbers, as r2 is where the target is constant; raises DataError."""
    bad = sorted(name for name, value in metrics.items() if not np.isfinite(value))
    if bad:
        raise DataError(where, f"the held-out rows give no finite {', '.join(bad)}: is Y constant?", VALIDATE)


def candidate_files(
    model: Regressor, trained_on: Dataset, held_out: Dataset, metrics: dict[str, float]
) -> dict[str, bytes]:
    """Return every file of the candidate, by its path in the output directory."""
    onnx_model = export(model)
    check_export(onnx_model, model, np.concatenate([trained_on.features, held_out.features]))
    predicted = model.predict(held_out.features)
    return {
        MODEL: onnx_model,
        SIGNATURE: to_json(
            {
                "inputs": [{"name": name, "type": "double", "required": True} for name in FEATURES],
                "outputs": [{"name": TARGET, "type": "double"}],
            }
        ),
        "model/examples.json": to_json({"tolerance": TOLERANCE, "examples": examples(model, trained_on.features)}),
        "metrics.json": to_json(metrics),
        "training-rows.json": to_json({"sha256": sorted(trained_on.hashes), "data_sha256": trained_on.sha256}),
        "plots/residuals.svg": plots.residuals(predicted, held_out.target - predicted),
    }


def export(model: Regressor) -> bytes:
    """Return the model as an ONNX graph in doubles: ``X`` ``[rows, 10]`` times the coefficients plus the intercept.

    skl2onnx would write the same two operators; its import costs half a second more than onnx alone.
    """
    from onnx import TensorProto, helper

    coefficients = np.asarray(model.coef_, dtype=np.float64).ravel()
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["X", "coefficients"], ["product"]),
            helper.make_node("Add", ["product", "intercept"], [TARGET]),
        ],
        "ridge",
        [helper.make_tensor_value_info("X", TensorProto.DOUBLE, ["rows", len(coefficients)])],
        [helper.make_tensor_value_info(TARGET, TensorProto.DOUBLE, ["rows"])],
        [
            helper.make_tensor("coefficients", TensorProto.DOUBLE, coefficients.shape, coefficients),
            helper.make_tensor("intercept", TensorProto.DOUBLE, [], [float(model.intercept_)]),
        ],
    )
    opset = helper.make_opsetid("", OPSET)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString())


def check_export(content: bytes, model: Regressor, features: Values) -> None:
    """Compare the ONNX model with the trained one on ``features`` ``[rows, 10]``.

    Raises:
        DataError: they differ, so that the ONNX model must not leave training.
    """
    next_step = "do not use this model; check the versions of onnx, onnxruntime and scikit-learn"
    expected = model.predict(features)
    try:
        answers = run_onnx(content, features)
    except ValueError as error:
        raise DataError(MODEL, f"the exported model cannot be run: {error}", next_step) from error
    distance = float(np.max(np.abs(answers - expected) / np.maximum(1.0, np.abs(expected))))
    if not distance <= EXPORT_TOLERANCE:
        raise DataError(
            MODEL, f"ONNX differs from the trained model by {distance:.2g} (at most {EXPORT_TOLERANCE:g})", next_step
        )


def examples(model: Regressor, features: Values) -> list[dict[str, object]]:
    """Requests and the trained model's answers: one row, and several at once.

    The rows are made of each column's quantiles, so that no person's row leaves training with the model.
    """
    rows = np.quantile(features, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    return [_example(model, rows[2:3]), _example(model, rows)]


def _example(model: Regressor, rows: Values) -> dict[str, object]:
    answers: Sequence[float] = model.predict(rows).tolist()
    return {"request": {"data": rows.tolist()}, "response": {"result": answers}}
