"""The scoring image: building, signing and finding it in a registry."""
