"""``python zenml_pipeline.py DATA DIRECTORY``: three ZenML steps, cache off, as its guide shows."""

from __future__ import annotations

import sys
from pathlib import Path

from ridge import dump, error, fit, split
from sklearn.linear_model import Ridge
from zenml import pipeline, step


@step(enable_cache=False)
def train(data: str) -> Ridge:
    """Fit on the training rows."""
    train_x, _, train_y, _ = split(Path(data))
    return fit(train_x, train_y)


@step(enable_cache=False)
def evaluate(model: Ridge, data: str) -> float:
    """Score the held-out rows."""
    _, test_x, _, test_y = split(Path(data))
    return error(model, test_x, test_y)


@step(enable_cache=False)
def register(model: Ridge, mse: float, directory: str) -> None:
    """Keep the model."""
    dump(model, Path(directory) / "model.pkl")


@pipeline(enable_cache=False)
def training(data: str, directory: str) -> None:
    """Train, evaluate, register."""
    model = train(data)
    register(model, evaluate(model, data), directory)


if __name__ == "__main__":
    training(sys.argv[1], sys.argv[2])
