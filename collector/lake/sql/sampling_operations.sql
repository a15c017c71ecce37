CREATE TABLE sampling_operations (
    day DATE NOT NULL,
    tenant VARCHAR NOT NULL,
    service_name VARCHAR NOT NULL,
    operation VARCHAR NOT NULL,
    spans BIGINT NOT NULL
)
