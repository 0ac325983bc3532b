"""Tools for maintaining this repository. The tasks call them; nothing that is deployed needs them."""
