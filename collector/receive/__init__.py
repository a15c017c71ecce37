"""Bytes in, status out: the OTLP servers. They know no columns."""
