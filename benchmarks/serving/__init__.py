"""What the serving benchmark needs: models, the usual script, a constant answer, a client with a fixed rate."""
