"""The scoring service. ``score.py`` and ``server.py`` beside this package are its entries."""
