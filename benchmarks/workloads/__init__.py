"""The same work as each peer's own guide would write it; each file runs in that peer's environment."""
