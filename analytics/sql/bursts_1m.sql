CREATE OR REPLACE VIEW bursts_1m AS
WITH seconds AS (
    SELECT
        window_start, region, tenant, service_name, component, operation, kind,
        unnest(map_entries(second_counts)) AS entry
    FROM rollup_1m
),
merged AS (
    SELECT
        window_start, region, tenant, service_name, component, operation, kind,
        entry.key AS second_of_minute,
        sum(entry.value)::BIGINT AS spans
    FROM seconds
    GROUP BY ALL
)
SELECT
    window_start, region, tenant, service_name, component, operation, kind,
    60 AS seconds,
    sum(spans)::BIGINT AS sum,
    sum(spans * spans)::HUGEINT AS sum_squares,
    max(spans) AS max,
    max(spans) * 60.0::DOUBLE / sum(spans) AS peak_to_mean
FROM merged
GROUP BY ALL
