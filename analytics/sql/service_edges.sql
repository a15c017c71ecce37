CREATE OR REPLACE VIEW service_edges AS
SELECT
    window_start, tenant, connection, client_type, client, client_region, server_type, server, server_region,
    destination,
    CASE
        WHEN is_matched THEN 'matched'
        WHEN window_start >= ago('3 minutes') THEN 'pending'
        ELSE 'unmatched'
    END AS state,
    sum(client_count)::BIGINT AS client_count,
    sum(client_errors)::BIGINT AS client_errors,
    latency_quantile_ns(list(client_buckets), 0.5) AS client_p50_ns,
    latency_quantile_ns(list(client_buckets), 0.95) AS client_p95_ns,
    sum(server_count)::BIGINT AS server_count,
    sum(server_errors)::BIGINT AS server_errors,
    latency_quantile_ns(list(server_buckets), 0.5) AS server_p50_ns,
    latency_quantile_ns(list(server_buckets), 0.95) AS server_p95_ns
FROM service_edges_1m
GROUP BY
    window_start, tenant, connection, client_type, client, client_region, server_type, server, server_region,
    destination, is_matched
HAVING sum(client_count) > 0 OR sum(server_count) > 0
