"""The work itself: read, split, fit, evaluate, dump. The same figures as diabetes_regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import train_test_split


def split(data: Path) -> Any:
    """Training and held-out rows: features ``[rows, 10]``, targets ``[rows]``."""
    rows = np.loadtxt(data, delimiter=",", skiprows=1)
    return train_test_split(rows[:, :-1], rows[:, -1], test_size=0.2, random_state=0)


def fit(features: Any, targets: Any) -> Any:
    """Ridge with alpha 0.4."""
    return Ridge(alpha=0.4).fit(features, targets)


def error(model: Any, features: Any, targets: Any) -> float:
    """Mean squared error on held-out rows."""
    return float(mean_squared_error(targets, model.predict(features)))


def dump(model: Any, path: Path) -> None:
    """Write the model."""
    joblib.dump(model, path)


def load(path: Path) -> Any:
    """Read the model that ``dump`` wrote."""
    return joblib.load(path)
