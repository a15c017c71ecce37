SELECT {by}, step, bucket, sum(spans)::BIGINT AS spans
FROM (
    SELECT
        *,
        unnest(map_keys(latency_buckets)) AS bucket,
        unnest(map_values(latency_buckets)) AS spans
    FROM (SELECT {by}, step, latency_buckets FROM rows_in_scope)
)
GROUP BY ALL
