"""``python mlflow_guide.py DATA DIRECTORY``: MLflow as its guide shows, with log_model, registry and alias."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from ridge import error, fit, split

if __name__ == "__main__":
    data, directory = map(Path, sys.argv[1:3])
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment("diabetes")
    train_x, test_x, train_y, test_y = split(data)
    with mlflow.start_run():
        model = fit(train_x, train_y)
        mlflow.log_metric("mse", error(model, test_x, test_y))
        logged = mlflow.sklearn.log_model(
            model, name="model", input_example=train_x[:2], registered_model_name="diabetes"
        )
    MlflowClient().set_registered_model_alias("diabetes", "champion", logged.registered_model_version)
