"""What a selection of spans has that the others have not: differences of shares, attribute by attribute.

After Honeycomb's BubbleUp, over all spans of the window, weighted by their sampling: for each value of each attribute
its share among the selected less that among the others. Attributes of which nearly every span has a value of its own
(ids) say nothing and are left out. Differences are tested as two proportions (Agresti and Caffo 2000) with the
effective numbers of the spans that were looked at, (sum of weights)^2 / sum of squared weights (Kish), and corrected
over all values (Benjamini and Hochberg).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import test_proportions_2indep

from analytics.window import Window
from collector.errors import OperatorError
from collector.lake.sandbox import Sandbox

TOGETHER = (
    ("tenant",),
    ("region", "zone", "host", "service_name", "service_version", "service_instance_id", "environment"),
    (
        "component", "operation", "kind", "status", "destination", "cache_hit", "error_type", "http_status",
        "scope_name",
    ),
)  # fmt: skip
"""Columns that are grouped in one go: those of a part depend on each other, so that their combinations are few."""
COLUMNS = tuple(name for part in TOGETHER for name in part)
ATTRIBUTE_SPANS_MAX = 200_000
"""Spans of which further attributes are looked at; of more, one in so many is."""
_TESTED_MAX = 300
_VALUES_MAX = 1000
_VALUES_SHARE_MAX = 0.5
_DIFFERENCE_MIN = 0.01
_Sides = dict[bool, dict[str, float]]
"""Of the selected and of the others, where there are any: spans, total (of weights) and squares (of weights)."""
_SCHEMA = {
    "attribute": pl.String(), "value": pl.String(), "share_selected": pl.Float64(), "share_others": pl.Float64(),
    "difference": pl.Float64(), "p_corrected": pl.Float64(), "spans_selected": pl.Int64(), "spans_others": pl.Int64(),
    "unknown_weight_share": pl.Float64(),
}  # fmt: skip


def explain(sandbox: Sandbox, window: Window, where: str, rows_max: int = 20) -> pl.DataFrame:
    """The values whose shares differ most, at most `rows_max` with a corrected p of at most 0.01.

    `where`: an SQL condition on columns of spans. Columns: attribute, value, share_selected, share_others, difference,
    p_corrected, spans_selected, spans_others (estimates, where one in so many was looked at), unknown_weight_share (of
    these, the share whose sampling probability is unknown and which count once); by absolute difference, largest first.
    Raises QueryError for a condition that does not run, OperatorError for one that selects nothing or everything.
    """
    columns = _columns(sandbox, window, where)
    sides = _sides(columns)
    if len(sides) < 2:
        everything = True in sides
        raise OperatorError(
            f"--where {where!r} selects {'every span' if everything else 'no span'} of {window.start:%Y-%m-%d %H:%M} "
            f"to {window.end:%Y-%m-%d %H:%M} UTC; expected a part of them, to compare with the others"
        )
    one_in = 1 + sum(int(side["spans"]) for side in sides.values()) // ATTRIBUTE_SPANS_MAX
    attributes, sampled = _attributes(sandbox, window, where, one_in)
    return _ranked(pl.concat([_compared(columns, sides), _compared(attributes, sampled, one_in)]), rows_max)


def frame(sandbox: Sandbox, sql: str) -> pl.DataFrame:
    """The answer to a statement as a frame. Raises QueryError."""
    import pyarrow as pa  # noqa: PLC0415 - what the sandbox gives

    with sandbox.run(sql) as result:
        return pl.DataFrame(pa.Table.from_batches(result.batches, result.schema))


def _scoped(window: Window, where: str, columns: str, sample: str = "") -> str:
    return (
        f"WITH scoped AS (SELECT coalesce(({where}\n), false) AS is_selected, coalesce(sample_weight, 1.0) AS weight, "
        f"(sample_weight IS NULL)::BIGINT AS unknown"
        f"{columns} FROM spans WHERE start_time >= TIMESTAMP '{window.start:%Y-%m-%d %H:%M}' "
        f"AND start_time < TIMESTAMP '{window.end:%Y-%m-%d %H:%M}'{sample}) "
    )


def _columns(sandbox: Sandbox, window: Window, where: str) -> pl.DataFrame:
    """Columns attribute, value, is_selected, spans, weight, unknown, squares: of COLUMNS, over all spans that have one.

    Spans are grouped to combinations first, thousands of them, and these to the values of each column.
    """
    parts = ", ".join(f"(is_selected, {', '.join(part)})" for part in TOGETHER)
    sums = "sum(weight) AS weight, sum(unknown)::BIGINT AS unknown, sum(squares) AS squares"
    name = " ".join(f"WHEN GROUPING({column}) = 0 THEN '{column}'" for column in COLUMNS)
    value = f"coalesce({', '.join(f'{column}::VARCHAR' for column in COLUMNS)})"
    sql = (
        f", combinations AS (SELECT is_selected, {', '.join(COLUMNS)}, count(*) AS spans, "
        f"{sums.replace('(squares)', '(weight * weight)')} FROM scoped GROUP BY GROUPING SETS ({parts})) "
        f"SELECT CASE {name} END AS attribute, {value} AS value, is_selected, sum(spans)::BIGINT AS spans, {sums} "
        f"FROM combinations GROUP BY GROUPING SETS ({', '.join(f'(is_selected, {column})' for column in COLUMNS)}) "
        "HAVING value IS NOT NULL"
    )
    return frame(sandbox, _scoped(window, where, "".join(f", {column}" for column in COLUMNS)) + sql)


def _sides(columns: pl.DataFrame) -> _Sides:
    every = columns.filter(pl.col("attribute") == "tenant").group_by("is_selected")  # the one that all spans have
    totals = every.agg(pl.col("spans").sum(), total=pl.col("weight").sum(), squares=pl.col("squares").sum())
    return {bool(row["is_selected"]): row for row in totals.iter_rows(named=True)}


def _attributes(sandbox: Sandbox, window: Window, where: str, one_in: int) -> tuple[pl.DataFrame, _Sides]:
    """The same of `attributes`, of one in so many spans alone; and the sides of these spans."""
    sample = f" AND hash(span_id) % {one_in} = 0" if one_in > 1 else ""
    sums = "count(*)::BIGINT AS spans, sum(weight) AS weight, sum(unknown)::BIGINT AS unknown"
    sql = (
        f"SELECT entry.key AS attribute, entry.value AS value, is_selected, {sums}, NULL::DOUBLE AS squares "
        "FROM (SELECT is_selected, weight, unknown, unnest(map_entries(attributes)) AS entry FROM scoped) GROUP BY ALL "
        f"UNION ALL SELECT NULL, NULL, is_selected, {sums}, sum(weight * weight) FROM scoped GROUP BY ALL"
    )
    found = frame(sandbox, _scoped(window, where, ", attributes", sample) + sql)
    sides = found.filter(pl.col("attribute").is_null()).rename({"weight": "total"})
    counted = found.filter(pl.col("attribute").is_not_null(), pl.col("value").is_not_null())
    return counted, {bool(row["is_selected"]): row for row in sides.iter_rows(named=True)}


def _compared(counted: pl.DataFrame, sides: _Sides, one_in: int = 1) -> pl.DataFrame:
    """Each value that may say something: the columns of the answer but the corrected p, and of both sides the effective
    numbers of spans `n` and `m`; none where a side has no spans."""
    numbers = {"n": pl.Float64(), "m": pl.Float64()}
    schema = {name: kind for name, kind in _SCHEMA.items() if name != "p_corrected"} | numbers
    if len(sides) < 2:
        return pl.DataFrame(schema=schema)
    sizes = counted.group_by("attribute").agg(values=pl.col("value").n_unique(), spans=pl.col("spans").sum())
    telling = sizes.filter(
        (pl.col("values") <= _VALUES_MAX) & (pl.col("values") <= _VALUES_SHARE_MAX * pl.col("spans") + 2)
    )["attribute"]
    of = pl.col("is_selected")
    rows = (
        counted.filter(pl.col("attribute").is_in(telling.implode()))
        .group_by("attribute", "value")
        .agg(
            share_selected=pl.col("weight").filter(of).sum() / sides[True]["total"],
            share_others=pl.col("weight").filter(~of).sum() / sides[False]["total"],
            spans_selected=pl.col("spans").filter(of).sum().cast(pl.Int64) * one_in,
            spans_others=pl.col("spans").filter(~of).sum().cast(pl.Int64) * one_in,
            unknown_weight_share=pl.col("unknown").sum() / pl.col("spans").sum(),
        )
        .with_columns(difference=pl.col("share_selected") - pl.col("share_others"))
        .filter(pl.col("difference").abs() >= _DIFFERENCE_MIN)
    )
    n, m = (sides[side]["total"] ** 2 / sides[side]["squares"] for side in (True, False))
    return rows.with_columns(n=pl.lit(n), m=pl.lit(m)).select(list(schema))


def _ranked(compared: pl.DataFrame, rows_max: int) -> pl.DataFrame:
    rows = compared.sort(pl.col("difference").abs(), "attribute", "value", descending=[True, False, False]).head(
        _TESTED_MAX
    )
    if rows.is_empty():
        return pl.DataFrame(schema=_SCHEMA)
    p = [_p(*row) for row in rows.select("share_selected", "n", "share_others", "m").iter_rows()]
    corrected = multipletests(p, method="fdr_bh")[1]
    told = rows.with_columns(p_corrected=pl.Series(corrected)).filter(pl.col("p_corrected") <= 0.01)
    return told.head(rows_max).select(list(_SCHEMA))


def _p(share: float, n: float, other: float, m: float) -> float:
    share, other = min(share, 1.0), min(other, 1.0)
    # A value that one side lacks: ratios are not asked for.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(test_proportions_2indep(share * n, n, other * m, m, method="agresti-caffo").pvalue)
