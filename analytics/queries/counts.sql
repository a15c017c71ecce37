SELECT
    {by},
    step,
    sum(count)::BIGINT AS count,
    sum(errors)::BIGINT AS errors,
    sum(hits)::BIGINT AS hits,
    sum(misses)::BIGINT AS misses,
    sum(bytes)::BIGINT AS bytes,
    sum(unknown_weight_count)::BIGINT AS unknown_weight_count
FROM rows_in_scope
GROUP BY ALL
