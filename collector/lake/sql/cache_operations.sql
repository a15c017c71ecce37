CREATE OR REPLACE VIEW cache_operations AS
SELECT
    start_time, region, tenant, service_name, kind, operation, destination AS cache, cache_hit, payload_bytes,
    duration_ns, status, error_type, host, service_version, sample_weight, trace_id, span_id, attributes
FROM spans
WHERE component = 'cache'
