"""Makes the models that are served, run by the peers' interpreter: ``python models.py DIRECTORY``.

Below DIRECTORY: ``ridge/`` and ``forest/``, each with ``package/`` (ours), ``usual/model.joblib`` (scikit-learn's, for
the usual script and MLflow) and ``rows.json`` (1,000 rows to ask for).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

SCORING = Path(__file__).resolve().parents[2] / "scoring"


def ridge(directory: Path) -> None:
    """Ten numbers, one sum: the project's own kind of model."""
    x, y = load_diabetes(return_X_y=True)
    model = Ridge(alpha=0.5).fit(x, y)
    graph = to_onnx(model, initial_types=[("X", DoubleTensorType([None, x.shape[1]]))])
    columns = [{"name": f"x{i}", "type": "double"} for i in range(x.shape[1])]
    rows = x[np.arange(1000) % len(x)].round(6).tolist()
    _write(directory, model, graph, columns, rows, model.predict(np.array(rows[:2])))


def forest(directory: Path) -> None:
    """300 trees on 25 numbers and 5 words of 8 kinds each."""
    random = np.random.default_rng(7)
    numbers = random.normal(size=(3000, 25)).astype(np.float32)
    words = random.choice([f"kind{i}" for i in range(8)], size=(3000, 5))
    names = [f"n{i}" for i in range(25)] + [f"w{i}" for i in range(5)]
    frame = pd.concat([pd.DataFrame(numbers), pd.DataFrame(words)], axis=1)
    frame.columns = names
    target = numbers[:, :5].sum(axis=1) + (frame["w0"] == "kind3") * 3 + random.normal(size=3000)
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), names[25:]), remainder="passthrough")
    trees = RandomForestRegressor(300, max_depth=12, random_state=7, n_jobs=-1)
    model = make_pipeline(encode, trees).fit(frame, target)
    trees.n_jobs = 1
    types = [(name, FloatTensorType([None, 1])) for name in names[:25]]
    types += [(name, StringTensorType([None, 1])) for name in names[25:]]
    graph = to_onnx(model, initial_types=types)
    columns = [{"name": name, "type": "float"} for name in names[:25]]
    columns += [{"name": name, "type": "string"} for name in names[25:]]
    rows = [[float(v) if isinstance(v, float) else v for v in row] for row in frame[:1000].to_numpy().tolist()]
    _write(directory, model, graph, columns, rows, model.predict(frame[:2]))


def _write(
    directory: Path, model: Any, graph: Any, columns: list[dict[str, str]], rows: list[Any], answers: Any
) -> None:
    (directory / "usual").mkdir(parents=True)
    joblib.dump(model, directory / "usual" / "model.joblib")
    (directory / "usual" / "columns.json").write_text(json.dumps([column["name"] for column in columns]))
    (directory / "rows.json").write_text(json.dumps(rows))
    package = directory / "package"
    (package / "model").mkdir(parents=True)
    (package / "model" / "model.onnx").write_bytes(graph.SerializeToString())
    signature = {"inputs": columns, "outputs": [{"name": "y", "type": "double"}]}
    (package / "model" / "signature.json").write_text(json.dumps(signature))
    example = {"request": {"data": rows[:2]}, "response": {"result": answers.tolist()}}
    (package / "model" / "examples.json").write_text(json.dumps({"tolerance": 1e-5, "examples": [example]}))
    shutil.copytree(SCORING, package / "scoring", ignore=shutil.ignore_patterns("__pycache__"))
    _write_manifest(package, directory.name)


def _write_manifest(package: Path, name: str) -> None:
    files = {
        path.relative_to(package).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(package.rglob("*"))
        if path.is_file()
    }
    model = {key: f"model/{key}.json" for key in ("signature", "examples")}
    model = {"name": name, "version": "1", "file": "model/model.onnx", **model}
    manifest = {"format": 1, "runtime": "onnx", "model": model, "files": files}
    (package / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))


if __name__ == "__main__":
    ridge(Path(sys.argv[1]) / "ridge")
    forest(Path(sys.argv[1]) / "forest")
