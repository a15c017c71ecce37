CREATE OR REPLACE VIEW trace_summaries AS
SELECT
    trace_id, start_time, duration_ns, spans, errors, services, missing_parents, is_complete,
    root_service_name, root_operation, root_kind, root_status, tenant, region, string_split(regions, ',') AS regions,
    top_service_name, top_operation, top_exclusive_ns, path_ns,
    top_exclusive_ns / nullif(path_ns, 0) AS top_share
FROM trace_rows
GROUP BY
    trace_id, start_time, duration_ns, spans, errors, services, missing_parents, is_complete,
    root_service_name, root_operation, root_kind, root_status, tenant, region, trace_rows.regions,
    top_service_name, top_operation, top_exclusive_ns, path_ns
HAVING sum(traces) > 0
