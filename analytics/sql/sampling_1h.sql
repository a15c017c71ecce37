CREATE OR REPLACE VIEW sampling_1h AS
SELECT
    window_start, region, tenant, service_name, operation,
    sum(count)::BIGINT AS count,
    sum(weighted_count) AS estimated_count,
    sum(weighted_errors) / sum(weighted_count) AS estimated_error_rate,
    effective_count(sum(weighted_count), sum(weight_squares)) AS effective_count,
    sum(unknown_weight_count) / sum(count) AS unknown_weight_share
FROM rollup_1h
GROUP BY ALL
