CREATE TABLE exemplar_cells_1m (
    window_start TIMESTAMP NOT NULL,
    region VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    service_name VARCHAR NOT NULL,
    component VARCHAR NOT NULL,
    operation VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    is_error BOOLEAN NOT NULL,
    cell SMALLINT NOT NULL,
    spans BIGINT NOT NULL,
    duration_ns BIGINT NOT NULL,
    trace_id VARCHAR NOT NULL,
    span_id VARCHAR NOT NULL
)
