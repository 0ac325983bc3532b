"""The target on a container engine."""
