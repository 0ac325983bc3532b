"""A container engine."""
