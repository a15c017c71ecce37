CREATE TABLE {table} (
    window_start TIMESTAMP NOT NULL,
{dimensions}    count BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    hits BIGINT NOT NULL,
    misses BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    weighted_count DOUBLE NOT NULL,
    weighted_errors DOUBLE NOT NULL,
    weight_squares DOUBLE NOT NULL,
    unknown_weight_count BIGINT NOT NULL,
    folded_series BIGINT NOT NULL,
    duration_sum_ns DECIMAL(38, 0) NOT NULL,
    duration_max_ns BIGINT NOT NULL,
    latency_buckets MAP(SMALLINT, UBIGINT) NOT NULL,
    second_counts MAP(USMALLINT, UINTEGER) NOT NULL
);
