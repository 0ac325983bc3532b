"""The target on Azure Container Instances."""
