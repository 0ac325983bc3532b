"""Saves a scikit-learn model as MLflow's, with its interpreter: ``python mlflow_model.py MODEL.joblib DIRECTORY``."""

from __future__ import annotations

import sys

import joblib
import mlflow.sklearn

if __name__ == "__main__":
    model = joblib.load(sys.argv[1])
    trusted = ["sklearn.tree._tree.Tree"]
    mlflow.sklearn.save_model(model, sys.argv[2], pip_requirements=["scikit-learn"], skops_trusted_types=trusted)
