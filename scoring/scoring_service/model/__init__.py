"""The model: its package on disk, its signature, its runtime, and the scoring of request bodies."""
