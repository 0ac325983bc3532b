"""The package that is served: its files, its signature and its runtime."""
