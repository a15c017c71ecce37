"""The page "System health": a window against the one before it, by region, tenant, service and operation."""
