CREATE OR REPLACE MACRO effective_count(weighted_count, weight_squares) AS (
    weighted_count * weighted_count / NULLIF(weight_squares, 0)
)
