"""What only whole traces tell: paths, edges, deliveries, summaries; and what single spans are remembered for."""
