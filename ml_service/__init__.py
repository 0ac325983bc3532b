"""Publish, train, register, package and deploy a machine-learning project."""
