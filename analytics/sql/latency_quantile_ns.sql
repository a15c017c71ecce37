CREATE OR REPLACE MACRO latency_quantile_ns(list_of_maps, q) AS (
    -- Most cells of a group are equal, bucket and count alike: histogram() counts them, in the order of buckets. A
    -- cell is one number, the count (below 2^52) under the bucket. Then the first bucket whose cumulative count
    -- exceeds the rank is found by bisection. Functions on lists keep memory in proportion to the list, where a
    -- subquery over unnest() would copy the list for every bucket. Nor is there a subquery around them: conditions on
    -- the groups of a query would not get past it. Lists of one element name what is used more than once.
    list_transform(
        list_transform(
            list_transform(
                list_transform(
                    [list_aggregate(
                        list_transform(
                            flatten(list_transform(list_of_maps, lambda m: map_entries(m))),
                            lambda e: ((e.key + 1)::UBIGINT << 52) + e.value
                        ),
                        'histogram'
                    )],
                    lambda h: {
                        'cells': map_keys(h),
                        'counts': list_transform(map_entries(h), lambda c: (c.key & ((1::BIGINT << 52) - 1)) * c.value)
                    }
                ),
                lambda s: {'cells': s.cells, 'counts': s.counts, 'rank': q::DOUBLE * (list_sum(s.counts) - 1)}
            ),
            lambda s: CASE WHEN len(s.cells) > 0 THEN
                (
                    s.cells[
                        1 + list_reduce(
                            range(31, -1, -1),
                            lambda below, bit: CASE
                                WHEN below + (1::BIGINT << bit) < len(s.cells)
                                    AND list_sum(s.counts[:below + (1::BIGINT << bit)]) <= s.rank
                                    THEN below + (1::BIGINT << bit)
                                ELSE below
                            END,
                            0
                        )
                    ] >> 52
                )::INTEGER - 1
            END
        ),
        lambda i: bucket_value_ns(i)
    )[1]
)
