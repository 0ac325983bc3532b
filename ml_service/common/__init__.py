"""Parts that the targets share."""
