"""What the collector tells about itself: metrics, health, traces, logs."""
