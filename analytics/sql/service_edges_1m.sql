CREATE TABLE service_edges_1m (
    window_start TIMESTAMP NOT NULL,
    tenant VARCHAR NOT NULL,
    connection VARCHAR NOT NULL,
    client_type VARCHAR NOT NULL,
    client VARCHAR NOT NULL,
    client_region VARCHAR NOT NULL,
    server_type VARCHAR NOT NULL,
    server VARCHAR NOT NULL,
    server_region VARCHAR NOT NULL,
    destination VARCHAR NOT NULL,
    is_matched BOOLEAN NOT NULL,
    client_count BIGINT NOT NULL,
    client_errors BIGINT NOT NULL,
    server_count BIGINT NOT NULL,
    server_errors BIGINT NOT NULL,
    client_buckets MAP(SMALLINT, BIGINT) NOT NULL,
    server_buckets MAP(SMALLINT, BIGINT) NOT NULL
)
