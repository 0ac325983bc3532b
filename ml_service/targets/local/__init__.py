"""The target on this machine."""
