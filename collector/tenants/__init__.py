"""Who sends, whether they may, and that nobody does so at another's cost."""
