CREATE TABLE sampling_traces (
    trace_id VARCHAR NOT NULL,
    factor DOUBLE NOT NULL,
    until TIMESTAMP_NS NOT NULL
)
