CREATE OR REPLACE VIEW traces AS
SELECT
    trace_id,
    min(start_time) AS start_time,
    max(epoch_ns(start_time) + duration_ns) - min(epoch_ns(start_time)) AS duration_ns,
    count(*) AS spans,
    count(*) FILTER (WHERE status = 'error') AS errors,
    count(DISTINCT service_name) AS services,
    arg_min(tenant, start_time) AS tenant,
    arg_min(region, start_time) AS region,
    arg_min(service_name, start_time) FILTER (WHERE parent_span_id IS NULL) AS root_service,
    arg_min(name, start_time) FILTER (WHERE parent_span_id IS NULL) AS root_name
FROM spans
GROUP BY trace_id
