CREATE TABLE sighting_rows (
    attribute VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    service_name VARCHAR NOT NULL,
    region VARCHAR NOT NULL,
    first_seen TIMESTAMP NOT NULL,
    last_seen TIMESTAMP NOT NULL,
    first_received_at TIMESTAMP NOT NULL,
    spans BIGINT NOT NULL
)
