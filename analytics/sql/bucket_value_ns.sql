CREATE OR REPLACE MACRO bucket_value_ns(bucket_index) AS (
    CASE
        WHEN bucket_index IS NULL THEN NULL
        WHEN bucket_index < 0 THEN 0::DOUBLE
        ELSE 0.99::DOUBLE * pow(101::DOUBLE / 99::DOUBLE, bucket_index::DOUBLE)
    END
)
