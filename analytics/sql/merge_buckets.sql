CREATE OR REPLACE MACRO merge_buckets(list_of_maps) AS (
    -- As in latency_quantile_ns, equal cells are counted first, in the order of buckets.
    list_transform(
        list_transform(
            list_transform(
                [COALESCE(
                    list_aggregate(
                        list_transform(
                            flatten(list_transform(list_of_maps, lambda m: map_entries(m))),
                            lambda e: ((e.key + 1)::UBIGINT << 52) + e.value
                        ),
                        'histogram'
                    ),
                    CASE WHEN list_of_maps IS NOT NULL THEN MAP {} END
                )],
                lambda h: {
                    'buckets': list_transform(map_keys(h), lambda c: ((c >> 52)::SMALLINT - 1)::SMALLINT),
                    'counts': list_transform(map_entries(h), lambda c: (c.key & ((1::BIGINT << 52) - 1)) * c.value)
                }
            ),
            lambda s: {
                'buckets': s.buckets, 'counts': s.counts, 'indexes': list_sort(list_distinct(s.buckets))
            }
        ),
        lambda s: map(
            s.indexes,
            list_transform(s.indexes, lambda i, n: list_sum(
                s.counts[
                    list_position(s.buckets, i)
                    :COALESCE(list_position(s.buckets, s.indexes[n + 1]) - 1, len(s.counts))
                ]
            )::UBIGINT)
        )
    )[1]
)
