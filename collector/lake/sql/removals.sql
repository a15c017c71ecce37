CREATE TABLE removals (
    removed_at TIMESTAMP NOT NULL,
    table_name VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    files BIGINT NOT NULL,
    rows BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    newest TIMESTAMP NOT NULL
)
