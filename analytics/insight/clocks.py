"""Clocks that disagree: a host whose spans lie outside the spans that cause them, or that they cause, or all of whose
spans are off by the same.

Each pair of hosts gives an offset (the middle of the served span less that of the call). One clock that is off moves
all pairs of its host by the same amount; offsets of single hosts are solved from those of pairs by least squares,
weighted by the number of spans. Clocks are told about, never corrected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analytics.change import duration
from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.scene import Scene

_RECENT_MINUTES = 3
_OFFSET_NS_MIN = 5_000_000.0
_SHARE_OF_LARGEST = 0.1
"""Offsets that are smaller, against the largest of the region, are what least squares leave of it."""
_PAIRS_MIN = 20
_OUTSIDE_MIN = 0.05
_MADS = 6.0
_RIGID = 0.05
_PEERS_MAX = 0.2
"""Where the hosts of a service move alike, by the median, it is what they wait for, and no clock."""
_PAIRS_OF_MINUTE_MIN = 5


def find(scene: Scene) -> list[Finding]:
    """A finding 'clock_skew' for each host whose clock moved against the others'."""
    known = scene.evidence.skew.filter(
        pl.col("minute") >= scene.span.start, pl.col("minute") < scene.span.end, pl.col("host") != pl.col("parent_host")
    ).sort("minute", "parent_host", "host", "region", "offset_ns", "pairs")  # fmt: skip
    recent = known.filter(pl.col("minute") >= scene.span.time(scene.span.count - _RECENT_MINUTES))
    if recent.is_empty():
        return []
    before = known.filter(pl.col("minute") < scene.span.time(scene.span.baseline))
    offsets = _offsets(recent)
    usual = dict(_offsets(before).iter_rows()) if before.height else {}
    moved = offsets.with_columns(
        usual=pl.col("host").replace_strict(usual, default=0.0, return_dtype=pl.Float64)
    ).with_columns(moved=pl.col("offset_ns") - pl.col("usual"))
    values = moved["moved"].to_numpy()
    noise = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    largest = float(np.abs(values - np.median(values)).max(initial=0.0))
    limit = max(_OFFSET_NS_MIN, _MADS * noise, _SHARE_OF_LARGEST * largest)
    hosts = scene.panel("host").keys.select("host", "region", "service_name")
    service = hosts.unique("host", keep="first", maintain_order=True)
    peers = pl.col("moved").abs().median().over("region", "service_name")
    found = (
        moved.join(service, on="host", how="left", maintain_order="left")
        .with_columns(peers=peers, hosts=pl.len().over("region", "service_name"))
        .with_columns(alone=(pl.col("hosts") >= 3) & (pl.col("peers") < _PEERS_MAX * pl.col("moved").abs()))
        .filter((pl.col("moved") - float(np.median(values))).abs() > limit)
    )
    told = (_told(scene, known, row, max(noise, _OFFSET_NS_MIN / _MADS)) for row in found.iter_rows(named=True))
    return [one for one in told if one is not None]


def _offsets(pairs: pl.DataFrame) -> pl.DataFrame:
    """Columns host, offset_ns: each host's clock against the middle of all that it is connected with."""
    merged = pairs.group_by("parent_host", "host", maintain_order=True).agg(
        offset=(pl.col("offset_ns") * pl.col("pairs")).sum() / pl.col("pairs").sum(), pairs=pl.col("pairs").sum()
    ).filter(pl.col("pairs") >= _PAIRS_MIN)  # fmt: skip
    hosts = pl.concat([merged["parent_host"], merged["host"]]).unique().sort()
    number = pl.DataFrame({"name": hosts, "number": range(len(hosts))})
    at = [
        merged.join(number, left_on=side, right_on="name", maintain_order="left")["number"].to_numpy()
        for side in ("parent_host", "host")
    ]
    weight = np.sqrt(merged["pairs"].to_numpy().astype(float))
    matrix = np.zeros((merged.height, len(hosts)))
    rows = np.arange(merged.height)
    matrix[rows, at[1]], matrix[rows, at[0]] = weight, -weight
    solved, *_ = np.linalg.lstsq(matrix, merged["offset"].to_numpy() * weight, rcond=None)
    frame = pl.DataFrame({"host": hosts, "offset_ns": solved}, schema={"host": pl.String(), "offset_ns": pl.Float64()})
    # Solutions are relative within each connected group of hosts: within regions, where calls go.
    region = pl.concat([pairs.select("region", host="parent_host"), pairs.select("region", "host")])
    region = region.unique("host", keep="first", maintain_order=True)
    centred = frame.join(region, on="host", maintain_order="left").with_columns(
        pl.col("offset_ns") - pl.col("offset_ns").median().over("region")
    )
    return centred.select("host", "offset_ns")


def _is_rigid(shifts: pl.DataFrame, scene: Scene, since: int) -> bool:
    """Whether all pairs are off by the same, minute after minute: what is slow spreads, a clock does not.

    A consumer whose clock is ahead takes its messages late and nothing before its cause.
    """
    recent = shifts.filter(pl.col("minute") >= scene.span.time(since), pl.col("pairs") >= _PAIRS_OF_MINUTE_MIN)
    if recent["minute"].n_unique() < 2:
        return False
    offsets = recent["offset_ns"].to_numpy()
    middle = float(np.median(offsets))
    return 1.4826 * float(np.median(np.abs(offsets - middle))) <= _RIGID * abs(middle)


def _told(scene: Scene, known: pl.DataFrame, row: dict[str, Any], noise: float) -> Finding | None:
    host, moved = str(row["host"]), float(row["moved"])
    mine = known.filter((pl.col("host") == host) | (pl.col("parent_host") == host))
    sign = pl.when(pl.col("host") == host).then(1).otherwise(-1)
    usual = float(row["usual"])
    by_minute = mine.group_by("minute").agg(offset=((sign * pl.col("offset_ns")) - usual).median()).sort("minute")
    off = by_minute.filter(pl.col("offset") / moved > 0.4)["minute"].sort(descending=True)
    since = scene.span.count - 1
    for index in scene.span.index(off):
        if since - index > 2:
            break
        since = int(index)
    region, service = str(mine["region"][0]), row["service_name"]
    place = Place(region, None if service is None else str(service), host=host)
    outside = mine.filter(pl.col("minute") >= scene.span.time(since)).select(pl.col("outside", "pairs").sum())
    pairs = max(int(outside["pairs"][0] or 0), 1)
    share = float(outside["outside"][0] or 0) / pairs
    shifts = mine.with_columns(sign * pl.col("offset_ns") - usual)
    if share < _OUTSIDE_MIN and not (row["alone"] and _is_rigid(shifts, scene, since)):
        return None
    effect = Effect("clock_offset_ns", moved, usual, max(abs(moved) / max(noise, 1.0), 1.0))
    p = float(2 * stats.norm.sf(abs(moved) / noise))
    what = f"{telling.percent(share)} of its calls lie outside the spans that cause them"
    if share < _OUTSIDE_MIN:
        what = "whatever reaches it seems to be late by just that"
    sentence = (
        f"The clock of host {host} in {region} is {duration(abs(moved))} {'ahead of' if moved > 0 else 'behind'} "
        "those it "
        f"talks to since {scene.span.time(since):%H:%M}; {what}, "
        "and durations across hosts mislead. Times are shown as they were sent."
    )
    return Finding(
        "clock_skew", place, "warning", telling.score(4.5, effect.ratio, pairs), telling.aware(scene, since),
        scene.until, effect,
        telling.confidence("least squares of offsets between hosts, against their MAD", p, p, pairs),
        sentence, (), (f"host={host}",),
        exemplars=telling.exemplars(scene, Place(region, place.service), since, errors=False),
        sql=telling.sql_of(scene, place, since, "rollup_host_1m"),
    )  # fmt: skip
