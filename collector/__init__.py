"""Takes OTLP spans, makes them durable before it acknowledges them, and commits them to the lake."""
