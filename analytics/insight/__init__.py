"""Insight: from counts by minute to ranked findings, each one plain sentence with its evidence."""
