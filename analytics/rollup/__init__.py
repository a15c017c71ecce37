"""Rollups: spans of the lake as additive partial rows by minute and hour, each span once."""
