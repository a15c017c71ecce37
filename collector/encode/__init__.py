"""Spans of the lake back into OTLP: what `collector.decode` took apart, put together again."""
