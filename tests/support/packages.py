"""Packages made for tests: small models, as ONNX graphs or scripts, with their signature, examples and manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Signature = Mapping[str, Sequence[Mapping[str, Any]]]

WEIGHTS = (1.0, 2.0, 3.0)

LINEAR: Signature = {
    "inputs": [{"name": name, "type": "double"} for name in ("AGE", "BMI", "BP")],
    "outputs": [{"name": "Y", "type": "double"}],
}
"""Y = AGE + 2 BMI + 3 BP."""

MIXED: Signature = {
    "inputs": [
        {"name": "number", "type": "double"},
        {"name": "single", "type": "float", "required": False, "default": 0.5},
        {"name": "count", "type": "long"},
        {"name": "small", "type": "integer", "required": False, "default": 7},
        {"name": "flag", "type": "boolean"},
        {"name": "word", "type": "string", "required": False},
    ],
    "outputs": [{"name": "sum", "type": "double"}],
}
"""sum = number + single + count + small + (1 if flag) + (100 if word is empty); one tensor an input."""


def linear_graph(weights: Sequence[float] = WEIGHTS) -> bytes:
    """One double tensor ``[rows, columns]`` times ``weights``."""
    matrix = numpy_helper.from_array(np.array(weights, np.float64).reshape(-1, 1), "weights")
    return _serialized(
        [helper.make_node("MatMul", ["X", "weights"], ["Y"])],
        [helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, len(weights)])],
        [helper.make_tensor_value_info("Y", TensorProto.DOUBLE, [None, 1])],
        [matrix],
    )


def mixed_graph() -> bytes:
    """The model of MIXED."""
    types = {
        "number": TensorProto.DOUBLE,
        "single": TensorProto.FLOAT,
        "count": TensorProto.INT64,
        "small": TensorProto.INT32,
        "flag": TensorProto.BOOL,
        "word": TensorProto.STRING,
    }
    numbers = [name for name in types if name != "word"]
    nodes = [helper.make_node("Cast", [name], [f"{name}_d"], to=TensorProto.DOUBLE) for name in numbers]
    hundred_if_empty: Any = {"keys_strings": [""], "values_floats": [100.0], "default_float": 0.0}
    nodes += [
        helper.make_node("LabelEncoder", ["word"], ["hundred"], domain="ai.onnx.ml", **hundred_if_empty),
        helper.make_node("Cast", ["hundred"], ["word_d"], to=TensorProto.DOUBLE),
        helper.make_node("Sum", [f"{name}_d" for name in types], ["sum"]),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, [None, 1]) for name, kind in types.items()]
    return _serialized(nodes, inputs, [helper.make_tensor_value_info("sum", TensorProto.DOUBLE, [None, 1])], [])


def slow_graph(steps: int) -> bytes:
    """Y = AGE after a loop of ``steps`` turns, each multiplying matrices: a model that takes its time."""
    big = numpy_helper.from_array(np.eye(200), "big")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "big"], ["next_state"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.DOUBLE, [200, 200]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.DOUBLE, [200, 200]),
        ],
    )
    nodes = [
        helper.make_node("Mul", ["X", "steps_d"], ["turns_d"]),
        helper.make_node("ReduceMax", ["turns_d"], ["turns_1"], keepdims=0),
        helper.make_node("Cast", ["turns_1"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "yes", "big"], ["state_end"], body=body),
        helper.make_node("ReduceMax", ["state_end"], ["one"], keepdims=0),
        helper.make_node("Mul", ["X", "one"], ["Y"]),
    ]
    constants = [
        big,
        numpy_helper.from_array(np.array(float(steps)), "steps_d"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    return _serialized(
        nodes,
        [helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, 1])],
        [helper.make_tensor_value_info("Y", TensorProto.DOUBLE, [None, 1])],
        constants,
    )


def _serialized(nodes: Any, inputs: Any, outputs: Any, constants: Any) -> bytes:
    graph = helper.make_graph(nodes, "model", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def make_package(
    directory: Path,
    content: bytes | str,
    signature: Signature = LINEAR,
    examples: Sequence[Mapping[str, Any]] | None = None,
    version: str = "3",
) -> Path:
    """A package whose model is ``content``: bytes for an ONNX graph, text for a script."""
    runtime = "onnx" if isinstance(content, bytes) else "script"
    file = "model/model.onnx" if runtime == "onnx" else "model/score.py"
    if examples is None:
        examples = [{"request": {"data": [[1.0, 1.0, 1.0]]}, "response": {"result": [6.0]}}]
    model = directory / "model"
    model.mkdir(parents=True)
    (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (model / "signature.json").write_text(json.dumps(signature))
    (model / "examples.json").write_text(json.dumps({"tolerance": 1e-6, "examples": list(examples)}))
    write_manifest(directory, runtime, file, version)
    return directory


def write_manifest(directory: Path, runtime: str, file: str, version: str = "3") -> None:
    """Vouch for every file that is in ``directory`` now."""
    files = {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and path.parent.name != "__pycache__"
    }
    model = {
        "name": "test_model",
        "version": version,
        "file": file,
        "signature": "model/signature.json",
        "examples": "model/examples.json",
    }
    manifest = {"format": 1, "runtime": runtime, "model": model, "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))
