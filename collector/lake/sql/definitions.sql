CREATE TABLE definitions (
    name VARCHAR NOT NULL,
    fingerprint VARCHAR NOT NULL,
    made_at TIMESTAMP NOT NULL
)
