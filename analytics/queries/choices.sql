SELECT
    COALESCE(region, tenant, service_name, component, operation, kind) AS choice,
    CASE
        WHEN GROUPING(region) = 0 THEN 'region'
        WHEN GROUPING(tenant) = 0 THEN 'tenant'
        WHEN GROUPING(service_name) = 0 THEN 'service_name'
        WHEN GROUPING(component) = 0 THEN 'component'
        WHEN GROUPING(operation) = 0 THEN 'operation'
        ELSE 'kind'
    END AS dimension
FROM rows_in_scope
GROUP BY GROUPING SETS ((region), (tenant), (service_name), (component), (operation), (kind))
ORDER BY sum(count) DESC, choice
