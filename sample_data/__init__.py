"""Simulated and captured OTLP traffic."""
