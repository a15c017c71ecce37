CREATE TABLE judged_minutes (
    start TIMESTAMP NOT NULL,
    until TIMESTAMP NOT NULL,
    settings VARCHAR NOT NULL,
    spans BIGINT NOT NULL
)
