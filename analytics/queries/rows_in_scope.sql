-- Rollup rows of a window and its baseline. Whole hours come from rollup_1h where the plan says so. `step` counts
-- steps of the window from $origin; the baseline is step -1. The spans that INGRESS takes stand in `ingress`.
WITH ranges AS NOT MATERIALIZED (
    SELECT * FROM rollup_1m WHERE window_start >= $baseline_start AND window_start < $baseline_hours_start
    UNION ALL
    SELECT * FROM rollup_1h WHERE window_start >= $baseline_hours_start AND window_start < $baseline_hours_end
    UNION ALL
    SELECT * FROM rollup_1m WHERE window_start >= $baseline_hours_end AND window_start < $hours_start
    UNION ALL
    SELECT * FROM rollup_1h WHERE window_start >= $hours_start AND window_start < $hours_end
    UNION ALL
    SELECT * FROM rollup_1m WHERE window_start >= $hours_end AND window_start < $end
),
in_scope AS NOT MATERIALIZED (
    SELECT
        *,
        CASE
            WHEN window_start < $start THEN -1
            ELSE (epoch(window_start)::BIGINT - $origin) // $step_seconds
        END AS step,
        CASE WHEN kind IN ('server', 'consumer', 'producer') THEN 1 WHEN kind = 'client' THEN 2 ELSE 3 END AS side
    FROM ranges
    WHERE (len($regions) = 0 OR list_contains($regions, region))
        AND (len($tenants) = 0 OR list_contains($tenants, tenant))
        AND (len($services) = 0 OR list_contains($services, service_name))
        AND (len($components) = 0 OR list_contains($components, component))
        AND (len($operations) = 0 OR list_contains($operations, operation))
        AND (len($kinds) = 0 OR list_contains($kinds, kind))
),
sides AS (
    SELECT tenant, component, min(side) AS side, min(min(side)) OVER (PARTITION BY tenant) AS tenant_side
    FROM in_scope
    WHERE $ingress
    GROUP BY tenant, component
),
ingress AS (
    SELECT tenant, component, side FROM sides WHERE side < 3 OR tenant_side = 3
),
rows_in_scope AS NOT MATERIALIZED (
    SELECT * FROM in_scope
    WHERE NOT $ingress OR (tenant, component, side) IN (FROM ingress)
)
