CREATE OR REPLACE MACRO merge_buckets(list_of_maps) AS (
    -- As in latency_quantile_ns, equal cells are counted first, in the order of buckets.
    SELECT map(
        indexes,
        list_transform(indexes, lambda i, n: list_sum(
            counts[list_position(buckets, i):COALESCE(list_position(buckets, indexes[n + 1]) - 1, len(counts))]
        )::UBIGINT)
    )
    FROM (
        SELECT buckets, counts, list_sort(list_distinct(buckets)) AS indexes
        FROM (
            SELECT
                list_transform(map_keys(cell_counts), lambda c: ((c >> 52)::SMALLINT - 1)::SMALLINT) AS buckets,
                list_transform(map_entries(cell_counts), lambda c: (c.key & ((1::BIGINT << 52) - 1)) * c.value) AS counts
            FROM (
                SELECT COALESCE(
                    list_aggregate(
                        list_transform(
                            flatten(list_transform(list_of_maps, lambda m: map_entries(m))),
                            lambda e: ((e.key + 1)::UBIGINT << 52) + e.value
                        ),
                        'histogram'
                    ),
                    CASE WHEN list_of_maps IS NOT NULL THEN MAP {} END
                ) AS cell_counts
            )
        )
    )
)
