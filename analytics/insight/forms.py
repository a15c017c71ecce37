"""The forms in which commands answer: `table`, text for people, `json` and `markdown`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import polars as pl

from analytics.insight.finding import Finding, frame

_BELOW = "\n" + " " * 18


def written(found: Sequence[Finding], end: datetime, format_: str) -> str:
    """Findings, as they were told at `end` (aware); as JSON a list of rows of FINDINGS_SCHEMA, times in ISO 8601."""
    if format_ == "json":
        rows = frame(list(found), end).to_dicts()
        return json.dumps(rows, default=lambda value: f"{value.isoformat()}Z", indent=2)
    if not found:
        return "Nothing stands out."
    if format_ == "markdown":
        return "\n".join(
            f"- **{one.severity}** ({one.state}) {one.sentence}" + _also(one, "; explains ", "; against ")
            for one in found
        )
    return "\n".join(
        f"{one.severity:<8} {one.state:<8} {one.sentence}{_also(one, _BELOW, _BELOW + 'against ')}" for one in found
    )


def _also(finding: Finding, symptoms: str, baselines: str) -> str:
    """What else it explains, and what it was compared with, each after its own words."""
    parts = ((symptoms, ", ".join(finding.symptoms)), (baselines, "; ".join(finding.baselines)))
    return "".join(f"{before}{told}" for before, told in parts if told)


def _table(rows: pl.DataFrame) -> str:
    """All of its rows as text."""
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        fmt_str_lengths=60,
        tbl_width_chars=240,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
    ):
        return str(rows)


def shown(rows: pl.DataFrame, format_: str) -> str:
    """All rows of a frame; as JSON a list of objects by column."""
    if format_ == "json":
        return json.dumps(rows.to_dicts(), default=str, indent=2)
    return _markdown(rows) if format_ == "markdown" else _table(rows)


def _markdown(rows: pl.DataFrame) -> str:
    lines = [rows.columns, ["---"] * rows.width, *(map(str, row) for row in rows.rows())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
