"""Conditions as people type them."""

from __future__ import annotations

import pytest

from analytics.insight.conditions import as_sql


@pytest.mark.parametrize(
    ("written", "sql"),
    [
        ("region=us-east-1", "region = 'us-east-1'"),
        (
            "Region = us-east-1, tenant=acme AND http_status=503",
            "region = 'us-east-1' AND tenant = 'acme' AND http_status = 503",
        ),
        ("cache_hit=false", "cache_hit = false"),
        ("start_time=2026-03-01T12:00Z", "start_time = '2026-03-01T12:00Z'"),
        ("region = 'us-east-1'", "region = 'us-east-1'"),
        ("name=operation", "name=operation"),
        ("regio=north", "regio=north"),
        ("duration_ns > 50e6 AND region=north", "duration_ns > 50e6 AND region=north"),
        ("region=north) OR (true", "region=north) OR (true"),
        ("true", "true"),
    ],
)
def test_conditions_may_be_short(written: str, sql: str) -> None:
    assert as_sql(written) == sql
