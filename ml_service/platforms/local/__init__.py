"""This machine: MLflow tracks, processes run, a folder keeps the pipelines."""
