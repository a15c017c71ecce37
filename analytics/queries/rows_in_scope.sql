-- Rollup rows of a window and its baseline, from the pieces of {rollup_1m,rollup_1h} that the plan says. `step` counts
-- steps of the window from $origin; the baseline is step -1. The spans that INGRESS takes stand in `ingress`.
WITH pieces AS NOT MATERIALIZED (
    {pieces}
),
in_scope AS NOT MATERIALIZED (
    SELECT
        *,
        CASE
            WHEN window_start < $start THEN -1
            ELSE (epoch(window_start)::BIGINT - $origin) // $step_seconds
        END AS step,
        CASE WHEN kind IN ('server', 'consumer', 'producer') THEN 1 WHEN kind = 'client' THEN 2 ELSE 3 END AS side
    FROM pieces
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
