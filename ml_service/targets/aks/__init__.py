"""A Kubernetes cluster, such as Azure Kubernetes Service."""
