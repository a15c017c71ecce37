"""Pages over the analytics, and the `spanlake` command that puts the parts together."""
