"""Time series: rate, errors, hit ratio and latency, small multiples with one shared order of colours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from html import escape
from typing import Any

import polars as pl
import streamlit as st

from dashboard import units
from dashboard.health.data import SERIES_MAX, Health
from dashboard.health.selection import DIMENSIONS
from dashboard.theme import Palette

HEIGHT_PX = 168
TIME_OF_DAY_DAYS_MAX = 1.5
_LOG_TICKS = [step * 10**exponent for exponent in range(13) for step in (1, 2, 5)]
_RATE = "datum.value >= 999.5 ? format(datum.value, '.3~s') : format(datum.value, '.3~r')"
_PERCENT = "format(datum.value * 100, '.3~r') + ' %'"
_DURATION = (
    "datum.value == 0 ? '0'"
    " : datum.value >= 1e9 ? format(datum.value / 1e9, '.3~r') + ' s'"
    " : datum.value >= 1e6 ? format(datum.value / 1e6, '.3~r') + ' ms'"
    " : datum.value >= 1e3 ? format(datum.value / 1e3, '.3~r') + ' µs'"
    " : format(datum.value, '.3~r') + ' ns'"
)


@dataclass(frozen=True)
class Chart:
    """One small multiple: title with unit, column of the series, text of a value, Vega expression of axis labels."""

    title: str
    column: str
    label_expression: str
    is_latency: bool = False

    def text(self, value: float | None) -> str:
        """A value as the tooltip shows it."""
        if self.is_latency:
            return units.duration(value)
        return units.rate(value) if self.column == "rate_per_second" else units.share(value)


CHARTS = (
    Chart("Rate, spans per second", "rate_per_second", _RATE),
    Chart("Errors, % of spans", "error_rate", _PERCENT),
    Chart("Cache hit ratio, % of lookups", "hit_ratio", _PERCENT),
    Chart("Latency p50", "p50_ns", _DURATION, is_latency=True),
    Chart("Latency p95", "p95_ns", _DURATION, is_latency=True),
    Chart("Latency p99", "p99_ns", _DURATION, is_latency=True),
)


@dataclass(frozen=True)
class Lines:
    """What all charts share: a frame of `analytics.health.health_series`, its column that splits it, the colours."""

    series: pl.DataFrame
    split: str
    palette: Palette

    def names(self) -> list[str]:
        """The groups, in the order of their colours."""
        return sorted(self.series.get_column(self.split).unique().to_list())

    def colours(self) -> list[str]:
        """A colour for each of `names`."""
        return [self.palette.series[i % len(self.palette.series)] for i in range(len(self.names()))]

    def days(self) -> float:
        """The length of time between the first step and the last."""
        times = self.series.get_column("time").to_list()
        return (max(times) - min(times)) / timedelta(days=1) if times else 0.0


def show(lines: Lines, log_latency: bool) -> None:
    """Draw the legend and the six charts, three in a line."""
    st.html(legend(lines))
    for row in (CHARTS[:3], CHARTS[3:]):
        for place, chart in zip(st.columns(3, gap="small"), row, strict=True):
            with place:
                log = log_latency and chart.is_latency
                st.vega_lite_chart(
                    points(chart, lines, log),
                    build(chart, lines, log),
                    width="stretch",
                    key=f"chart-{chart.column}",
                    alt=chart.title,
                )


def note(health: Health) -> str:
    """Which groups the charts show, where they are not all."""
    if health.split_values <= SERIES_MAX:
        return ""
    return f"the {SERIES_MAX} of {health.split_values:,} that changed most"


def split_label(health: Health) -> str:
    """Name of the dimension that the lines stand for."""
    return next(name for name, column in DIMENSIONS.items() if column == health.split)


def legend(lines: Lines) -> str:
    """One line of HTML: each name behind a dash of its colour."""
    chips = (
        f'<span style="margin-right:1.2rem;white-space:nowrap"><span style="display:inline-block;width:14px;height:3px;'
        f'border-radius:2px;vertical-align:middle;margin-right:0.4rem;background:{colour}"></span>{escape(name)}</span>'
        for name, colour in zip(lines.names(), lines.colours(), strict=True)
    )
    return f'<div style="font-size:0.86rem;color:{lines.palette.text};line-height:1.7">{"".join(chips)}</div>'


def build(chart: Chart, lines: Lines, log: bool) -> dict[str, Any]:
    """A Vega-Lite specification: lines over UTC time, with the point next to the pointer marked and told."""
    palette = lines.palette
    return {
        "height": HEIGHT_PX,
        "title": {
            "text": chart.title, "anchor": "start", "fontSize": 12, "fontWeight": 600, "color": palette.text,
            "offset": 8,
        },
        "encoding": {
            "x": {
                "field": "time", "type": "temporal", "scale": {"type": "utc"},
                "axis": _time_axis(palette, lines.days()),
            },
            "y": _value_axis(chart, palette, log),
            "color": {
                "field": "group", "type": "nominal", "legend": None,
                "scale": {"domain": lines.names(), "range": lines.colours()},
            },
        },
        "layer": [{"mark": {"type": "line", "strokeWidth": 1.6}}, _pointed(chart, lines.split)],
        "config": {"view": {"strokeWidth": 0}},
    }  # fmt: skip


def _pointed(chart: Chart, split: str) -> dict[str, Any]:
    select = {"type": "point", "on": "pointerover", "nearest": True, "fields": ["time", "group"], "clear": "pointerout"}
    return {
        "params": [{"name": "pointed", "select": select}],
        "mark": {"type": "point", "filled": True, "size": 46},
        "encoding": {
            "opacity": {"condition": {"param": "pointed", "empty": False, "value": 1}, "value": 0},
            "tooltip": [
                {"field": "group", "type": "nominal", "title": split.removesuffix("_name").capitalize()},
                {"field": "text", "type": "nominal", "title": chart.title.partition(",")[0]},
                {"field": "clock", "type": "nominal", "title": "Time"},
            ],
        },
    }


def points(chart: Chart, lines: Lines, log: bool) -> pl.DataFrame:
    """Rows time, group, value, text, clock; a step without a value is a gap, as is 0 on a logarithmic axis."""
    value = pl.col(chart.column).cast(pl.Float64)
    if log:
        value = pl.when(value > 0).then(value)
    texts = [chart.text(v) for v in lines.series.get_column(chart.column)]
    return lines.series.select(
        time=pl.col("time").dt.replace_time_zone("UTC"),
        group=pl.col(lines.split).cast(pl.String),
        value=value,
        text=pl.Series(texts, dtype=pl.String),
        clock=pl.col("time").dt.strftime("%-d %b %H:%M UTC"),
    )


def _time_axis(palette: Palette, days: float) -> dict[str, Any]:
    return {
        "title": None, "format": "%d %b" if days > TIME_OF_DAY_DAYS_MAX else "%H:%M", "grid": False, "tickCount": 6,
        "labelOverlap": True, "labelColor": palette.muted, "labelFontSize": 11, "labelPadding": 4,
        "domainColor": palette.border, "tickColor": palette.border, "offset": 2,
    }  # fmt: skip


def _value_axis(chart: Chart, palette: Palette, log: bool) -> dict[str, Any]:
    scale = {"type": "log", "nice": False} if log else {"zero": chart.column != "hit_ratio", "nice": True}
    ticks = {"values": _LOG_TICKS} if log else {"tickCount": 4}
    return {
        "field": "value", "type": "quantitative", "scale": scale,
        "axis": ticks | {
            "title": None, "labelExpr": chart.label_expression, "gridColor": palette.border, "domain": False,
            "ticks": False, "labelColor": palette.muted, "labelFontSize": 11, "labelPadding": 6, "minExtent": 46,
        },
    }  # fmt: skip
