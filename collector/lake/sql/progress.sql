CREATE TABLE progress (
    job VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    committed_at TIMESTAMP NOT NULL
)
