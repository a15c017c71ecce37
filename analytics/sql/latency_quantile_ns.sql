CREATE OR REPLACE MACRO latency_quantile_ns(list_of_maps, q) AS (
    -- The first bucket whose cumulative count exceeds the rank, found by bisection: a lambda keeps memory in
    -- proportion to the list, where a subquery over unnest() would copy the list for every bucket.
    SELECT bucket_value_ns(
        CASE WHEN len(entries) > 0 THEN
            list_reduce(
                [2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1],
                lambda low, step: CASE
                    WHEN list_sum(list_transform(
                        entries, lambda e: CASE WHEN e.key < low + step THEN e.value ELSE 0 END
                    )) <= q::DOUBLE * (total - 1)
                        THEN low + step
                    ELSE low
                END,
                -1
            )
        END
    )
    FROM (
        SELECT entries, list_sum(list_transform(entries, lambda e: e.value)) AS total
        FROM (SELECT flatten(list_transform(list_of_maps, lambda m: map_entries(m))) AS entries)
    )
)
