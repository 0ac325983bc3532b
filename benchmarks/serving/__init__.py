"""The parts of the serving benchmark: models, the usual script, a constant answer, a client with a fixed rate."""
