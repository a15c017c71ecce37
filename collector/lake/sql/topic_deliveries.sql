CREATE OR REPLACE VIEW topic_deliveries AS
WITH consumed AS (
    SELECT
        * EXCLUDE (links),
        unnest(
            CASE
                WHEN len(links) > 0
                    THEN list_transform(links, lambda l: {'trace_id': l.trace_id, 'span_id': l.span_id})
                ELSE [{'trace_id': trace_id, 'span_id': parent_span_id}]
            END
        ) AS creation
    FROM spans
    WHERE component = 'topic' AND kind = 'consumer'
)
SELECT
    produced.start_time AS published_at,
    consumed.start_time AS delivered_at,
    epoch_ns(consumed.start_time) - epoch_ns(produced.start_time) AS delivery_lag_ns,
    consumed.tenant,
    COALESCE(consumed.destination, produced.destination) AS topic,
    produced.region AS from_region,
    consumed.region AS to_region,
    consumed.service_name AS consumer,
    consumed.status,
    consumed.payload_bytes,
    produced.trace_id AS producer_trace_id,
    produced.span_id AS producer_span_id,
    consumed.trace_id AS consumer_trace_id,
    consumed.span_id AS consumer_span_id
FROM consumed
LEFT JOIN spans AS produced
    ON produced.trace_id = consumed.creation.trace_id
    AND produced.span_id = consumed.creation.span_id
    AND produced.kind = 'producer'
