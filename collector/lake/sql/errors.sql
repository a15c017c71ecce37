CREATE OR REPLACE VIEW errors AS
SELECT
    start_time, region, tenant, service_name, component, operation, destination, kind, name,
    error_type, status_message, http_status, duration_ns, host, service_version, trace_id, span_id, attributes
FROM spans
WHERE status = 'error'
