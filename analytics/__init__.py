"""Turns spans into aggregates and insight by region, tenant and time window."""
