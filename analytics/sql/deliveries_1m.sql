CREATE TABLE deliveries_1m (
    window_start TIMESTAMP NOT NULL,
    region VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    destination VARCHAR NOT NULL,
    messages BIGINT NOT NULL,
    delivered BIGINT NOT NULL,
    deliveries BIGINT NOT NULL,
    consumer_errors BIGINT NOT NULL,
    negative_lags BIGINT NOT NULL,
    lag_buckets MAP(SMALLINT, BIGINT) NOT NULL,
    first_lag_buckets MAP(SMALLINT, BIGINT) NOT NULL,
    last_lag_buckets MAP(SMALLINT, BIGINT) NOT NULL,
    fan_out_counts MAP(SMALLINT, BIGINT) NOT NULL
)
