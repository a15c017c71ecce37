CREATE TABLE resources (
    resource_id VARCHAR NOT NULL,
    schema_url VARCHAR,
    attributes MAP(VARCHAR, VARCHAR) NOT NULL,
    dropped_attributes_count UINTEGER NOT NULL,
    first_seen_at TIMESTAMP_NS NOT NULL
)
