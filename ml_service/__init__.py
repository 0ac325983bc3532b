"""What runs a machine-learning project: publish, train, register, package and deploy it."""
