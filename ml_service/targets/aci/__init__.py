"""Azure Container Instances."""
