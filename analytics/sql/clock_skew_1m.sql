CREATE TABLE clock_skew_1m (
    window_start TIMESTAMP NOT NULL,
    from_region VARCHAR NOT NULL,
    from_host VARCHAR NOT NULL,
    to_region VARCHAR NOT NULL,
    to_host VARCHAR NOT NULL,
    negative_lags BIGINT NOT NULL,
    ahead_sum_ns DECIMAL(38, 0) NOT NULL
)
