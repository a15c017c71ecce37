CREATE TABLE critical_path_1m (
    window_start TIMESTAMP NOT NULL,
    root_service_name VARCHAR NOT NULL,
    root_operation VARCHAR NOT NULL,
    region VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    service_name VARCHAR NOT NULL,
    component VARCHAR NOT NULL,
    operation VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    spans BIGINT NOT NULL,
    path_spans BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    exclusive_ns DECIMAL(38, 0) NOT NULL,
    self_ns DECIMAL(38, 0) NOT NULL,
    duration_sum_ns DECIMAL(38, 0) NOT NULL
)
