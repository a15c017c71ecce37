"""Simulated and captured OTLP traffic of a multi-tenant, multi-region platform of caches and topics."""
