"""Scripted incidents: what changes the platform's behaviour for a while, and the truth about it."""
