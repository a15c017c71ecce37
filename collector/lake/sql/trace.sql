CREATE OR REPLACE MACRO trace(id, around := '', within := '1 hour') AS TABLE
-- A constant condition leaves one branch. Without a time, the trace's own times are looked up first, in few columns:
-- only the files of these times are then read in all columns.
SELECT *
FROM (
    SELECT *
    FROM spans
    WHERE COALESCE(around::VARCHAR, '') = ''
        AND trace_id = lower(id)
        AND start_time IN (SELECT start_time FROM spans WHERE trace_id = lower(id))
    UNION ALL
    SELECT *
    FROM spans
    WHERE COALESCE(around::VARCHAR, '') <> ''
        AND trace_id = lower(id)
        AND start_time >= (NULLIF(around::VARCHAR, '')::TIMESTAMP - within::INTERVAL)::TIMESTAMP_NS
        AND start_time <= (NULLIF(around::VARCHAR, '')::TIMESTAMP + within::INTERVAL)::TIMESTAMP_NS
)
ORDER BY start_time
