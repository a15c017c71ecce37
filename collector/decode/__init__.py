"""Request bytes to Arrow spans: pure, columnar, one schema."""
