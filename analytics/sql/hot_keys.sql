CREATE OR REPLACE VIEW hot_keys AS
WITH sums AS (
    SELECT
        window_start, region, tenant, service_name, component, destination, kind,
        sum(spans)::BIGINT AS spans, sum(keyed)::BIGINT AS keyed, sum(undercount)::BIGINT AS undercount
    FROM hot_keys_1m
    GROUP BY ALL
),
counters AS (
    SELECT
        window_start, region, tenant, service_name, component, destination, kind, counter.key AS name,
        sum(counter.value)::BIGINT AS count
    FROM (SELECT * EXCLUDE (key_counts), unnest(map_entries(key_counts)) AS counter FROM hot_keys_1m)
    GROUP BY ALL
),
tops AS (
    SELECT
        window_start, region, tenant, service_name, component, destination, kind,
        max({'count': count, 'name': name}) AS top, sum(count::DOUBLE * count) AS sum_squares
    FROM counters
    GROUP BY ALL
)
SELECT
    window_start, region, tenant, service_name, component, destination, kind, spans, keyed, undercount,
    tops.top.name AS top_key,
    tops.top.count AS top_count,
    tops.top.count / keyed AS top_share,
    least(1.0, (tops.top.count + undercount) / keyed) AS top_share_max,
    sum_squares / (keyed::DOUBLE * keyed) AS hhi
FROM sums
LEFT JOIN tops USING (window_start, region, tenant, service_name, component, destination, kind)
