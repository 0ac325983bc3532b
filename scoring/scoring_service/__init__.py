"""The scoring service. Its entries are ``score.py`` and ``server.py``, beside this package."""
