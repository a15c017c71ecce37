CREATE OR REPLACE MACRO merge_buckets(list_of_maps) AS (
    SELECT map(
        indexes,
        list_transform(indexes, lambda i:
            list_sum(list_transform(list_filter(entries, lambda e: e.key = i), lambda e: e.value))::UBIGINT
        )
    )
    FROM (
        SELECT entries, list_sort(list_distinct(list_transform(entries, lambda e: e.key))) AS indexes
        FROM (SELECT flatten(list_transform(list_of_maps, lambda m: map_entries(m))) AS entries)
    )
)
