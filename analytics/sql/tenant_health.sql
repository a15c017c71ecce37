CREATE OR REPLACE VIEW tenant_health AS
WITH recent AS (
    SELECT
        *, window_start >= date_trunc('minute', ago('15 minutes')) AS is_now
    FROM rollup_1m
    WHERE window_start >= date_trunc('minute', ago('30 minutes'))
        AND window_start < date_trunc('minute', ago('0 minutes'))
),
-- Summed before the quantiles: six of them over lists of all maps would take five times as long.
sums AS (
    SELECT tenant, region, is_now, cell.key AS bucket, sum(cell.value)::UBIGINT AS spans
    FROM (SELECT tenant, region, is_now, unnest(map_entries(latency_buckets)) AS cell FROM recent)
    GROUP BY ALL
),
latencies AS (
    SELECT
        tenant,
        region,
        [map_from_entries(list((bucket, spans)) FILTER (is_now))] AS buckets,
        [map_from_entries(list((bucket, spans)) FILTER (NOT is_now))] AS baseline_buckets
    FROM sums
    GROUP BY tenant, region
),
figures AS (
    SELECT
        tenant,
        region,
        COALESCE(sum(count) FILTER (is_now), 0)::BIGINT AS count,
        sum(errors) FILTER (is_now) / sum(count) FILTER (is_now) AS error_rate,
        sum(hits) FILTER (is_now) / NULLIF(sum(hits + misses) FILTER (is_now), 0) AS hit_ratio,
        COALESCE(sum(count) FILTER (NOT is_now), 0)::BIGINT AS baseline_count,
        sum(errors) FILTER (NOT is_now) / sum(count) FILTER (NOT is_now) AS baseline_error_rate,
        sum(hits) FILTER (NOT is_now) / NULLIF(sum(hits + misses) FILTER (NOT is_now), 0) AS baseline_hit_ratio
    FROM recent
    GROUP BY tenant, region
)
SELECT
    tenant,
    region,
    count,
    count / 900 AS rate_per_second,
    error_rate,
    latency_quantile_ns(buckets, 0.5) AS p50_ns,
    latency_quantile_ns(buckets, 0.95) AS p95_ns,
    latency_quantile_ns(buckets, 0.99) AS p99_ns,
    hit_ratio,
    baseline_count,
    baseline_count / 900 AS baseline_rate_per_second,
    baseline_error_rate,
    latency_quantile_ns(baseline_buckets, 0.5) AS baseline_p50_ns,
    latency_quantile_ns(baseline_buckets, 0.95) AS baseline_p95_ns,
    latency_quantile_ns(baseline_buckets, 0.99) AS baseline_p99_ns,
    baseline_hit_ratio
FROM figures
LEFT JOIN latencies USING (tenant, region)
