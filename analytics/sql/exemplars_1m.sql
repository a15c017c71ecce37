CREATE OR REPLACE VIEW exemplars_1m AS
WITH cells AS (
    SELECT
        window_start, region, tenant, service_name, component, operation, kind, is_error, cell,
        sum(spans)::BIGINT AS spans,
        max({'duration_ns': duration_ns, 'trace_id': trace_id, 'span_id': span_id}) AS slowest
    FROM exemplar_cells_1m
    GROUP BY ALL
),
halves AS (
    SELECT
        *,
        2 * sum(spans) OVER (
            PARTITION BY window_start, region, tenant, service_name, component, operation, kind
            ORDER BY cell, slowest
            ROWS UNBOUNDED PRECEDING
        ) >= sum(spans) OVER (
            PARTITION BY window_start, region, tenant, service_name, component, operation, kind
        ) AS is_half
    FROM cells
),
picked AS (
    SELECT
        window_start, region, tenant, service_name, component, operation, kind,
        unnest([
            {'exemplar': 'slowest', 'span': max(slowest)},
            {'exemplar': 'error', 'span': max(slowest) FILTER (is_error)},
            {'exemplar': 'typical', 'span': min(slowest) FILTER (is_half)}
        ]) AS of_kind
    FROM halves
    GROUP BY ALL
)
SELECT
    window_start, region, tenant, service_name, component, operation, kind,
    of_kind.exemplar AS exemplar,
    of_kind.span.duration_ns AS duration_ns,
    of_kind.span.trace_id AS trace_id,
    of_kind.span.span_id AS span_id
FROM picked
WHERE of_kind.span IS NOT NULL
