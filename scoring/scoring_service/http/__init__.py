"""HTTP: the protocol, and what each path answers."""
