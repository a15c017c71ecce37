CREATE OR REPLACE VIEW sightings AS
SELECT
    attribute, value, service_name, region,
    min(first_seen) AS first_seen,
    max(last_seen) AS last_seen,
    min(first_received_at) AS first_received_at,
    sum(spans)::BIGINT AS spans
FROM sighting_rows
GROUP BY attribute, value, service_name, region
