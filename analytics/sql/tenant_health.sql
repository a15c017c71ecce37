CREATE OR REPLACE VIEW tenant_health AS
WITH recent AS (
    SELECT
        *, window_start >= date_trunc('minute', ago('15 minutes')) AS is_now
    FROM rollup_1m
    WHERE window_start >= date_trunc('minute', ago('30 minutes'))
        AND window_start < date_trunc('minute', ago('0 minutes'))
)
SELECT
    tenant,
    region,
    COALESCE(sum(count) FILTER (is_now), 0)::BIGINT AS count,
    COALESCE(sum(count) FILTER (is_now), 0) / 900 AS rate_per_second,
    sum(errors) FILTER (is_now) / sum(count) FILTER (is_now) AS error_rate,
    latency_quantile_ns(list(latency_buckets) FILTER (is_now), 0.5) AS p50_ns,
    latency_quantile_ns(list(latency_buckets) FILTER (is_now), 0.95) AS p95_ns,
    latency_quantile_ns(list(latency_buckets) FILTER (is_now), 0.99) AS p99_ns,
    sum(hits) FILTER (is_now) / NULLIF(sum(hits + misses) FILTER (is_now), 0) AS hit_ratio,
    COALESCE(sum(count) FILTER (NOT is_now), 0)::BIGINT AS baseline_count,
    COALESCE(sum(count) FILTER (NOT is_now), 0) / 900 AS baseline_rate_per_second,
    sum(errors) FILTER (NOT is_now) / sum(count) FILTER (NOT is_now) AS baseline_error_rate,
    latency_quantile_ns(list(latency_buckets) FILTER (NOT is_now), 0.5) AS baseline_p50_ns,
    latency_quantile_ns(list(latency_buckets) FILTER (NOT is_now), 0.95) AS baseline_p95_ns,
    latency_quantile_ns(list(latency_buckets) FILTER (NOT is_now), 0.99) AS baseline_p99_ns,
    sum(hits) FILTER (NOT is_now) / NULLIF(sum(hits + misses) FILTER (NOT is_now), 0) AS baseline_hit_ratio
FROM recent
GROUP BY tenant, region
