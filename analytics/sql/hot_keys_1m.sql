CREATE TABLE hot_keys_1m (
    window_start TIMESTAMP NOT NULL,
    region VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    service_name VARCHAR NOT NULL,
    component VARCHAR NOT NULL,
    destination VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    spans BIGINT NOT NULL,
    keyed BIGINT NOT NULL,
    undercount BIGINT NOT NULL,
    key_counts MAP(VARCHAR, BIGINT) NOT NULL
)
