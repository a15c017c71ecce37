CREATE TABLE samplings (
    step BIGINT NOT NULL,
    sampled_at TIMESTAMP NOT NULL,
    files BIGINT NOT NULL,
    spans BIGINT NOT NULL,
    kept_spans BIGINT NOT NULL,
    weight DOUBLE NOT NULL,
    kept_weight DOUBLE NOT NULL,
    traces BIGINT NOT NULL,
    error_traces BIGINT NOT NULL,
    slow_traces BIGINT NOT NULL,
    rare_traces BIGINT NOT NULL,
    share_traces BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    kept_bytes BIGINT NOT NULL,
    newest TIMESTAMP NOT NULL
)
