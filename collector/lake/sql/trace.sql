CREATE OR REPLACE MACRO trace(id, around := '', within := '1 hour') AS TABLE
SELECT *
FROM spans
WHERE trace_id = lower(id)
    AND start_time >= COALESCE(
        NULLIF(around::VARCHAR, '')::TIMESTAMP - within::INTERVAL, TIMESTAMP '1677-09-22'
    )::TIMESTAMP_NS
    AND start_time <= COALESCE(
        NULLIF(around::VARCHAR, '')::TIMESTAMP + within::INTERVAL, TIMESTAMP '2262-04-11'
    )::TIMESTAMP_NS
ORDER BY start_time
