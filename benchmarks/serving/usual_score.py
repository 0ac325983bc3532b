"""The script that most people write for Azure ML: json.loads, scikit-learn, a list."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

model: Any = None
columns: list[str] = []
of_numbers = True


def init() -> None:
    """Load the model."""
    global model, columns, of_numbers
    directory = Path(os.environ["AZUREML_MODEL_DIR"])
    model = joblib.load(directory / "model.joblib")
    columns = json.loads((directory / "columns.json").read_text())
    of_numbers = not hasattr(model, "steps")


def run(raw: str) -> dict[str, Any]:
    """Predict."""
    data = json.loads(raw)["data"]
    rows = np.array(data) if of_numbers else pd.DataFrame(data, columns=columns)
    return {"result": model.predict(rows).tolist()}
