CREATE OR REPLACE MACRO latency_quantile_ns(list_of_maps, q) AS (
    -- Most cells of a group are equal, bucket and count alike: histogram() counts them, in the order of buckets. A
    -- cell is one number, the count (below 2^52) under the bucket. Then the first bucket whose cumulative count
    -- exceeds the rank is found by bisection. Functions on lists keep memory in proportion to the list, where a
    -- subquery over unnest() would copy the list for every bucket.
    SELECT bucket_value_ns(
        CASE WHEN len(cells) > 0 THEN
            (
                cells[
                    1 + list_reduce(
                        range(31, -1, -1),
                        lambda below, bit: CASE
                            WHEN below + (1::BIGINT << bit) < len(cells)
                                AND list_sum(counts[:below + (1::BIGINT << bit)]) <= q::DOUBLE * (total - 1)
                                THEN below + (1::BIGINT << bit)
                            ELSE below
                        END,
                        0
                    )
                ] >> 52
            )::INTEGER - 1
        END
    )
    FROM (
        SELECT cells, counts, list_sum(counts) AS total
        FROM (
            SELECT
                map_keys(cell_counts) AS cells,
                list_transform(map_entries(cell_counts), lambda c: (c.key & ((1::BIGINT << 52) - 1)) * c.value) AS counts
            FROM (
                SELECT list_aggregate(
                    list_transform(
                        flatten(list_transform(list_of_maps, lambda m: map_entries(m))),
                        lambda e: ((e.key + 1)::UBIGINT << 52) + e.value
                    ),
                    'histogram'
                ) AS cell_counts
            )
        )
    )
)
