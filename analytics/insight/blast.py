"""Many tenants hurt at once: told where nothing else says so.

A trouble of many small tenants drowns in the traffic of the large ones. So tenants are counted, not spans: the share
of a region's active tenants whose last minutes lie beyond _RAISED of their own usual scales, against that share in
blocks of as many minutes before. Wilson's lower bound of it must exceed all of these, and the share their median by
_DEVIATION_MIN scales. What another finding explains is folded into that.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from analytics.insight import baselines, telling
from analytics.insight.finding import Confidence, Effect, Finding, Place
from analytics.insight.measures import Bools, Floats, Measure, Rated, summed
from analytics.insight.places import goes_on
from analytics.insight.reach import hurt, share_of
from analytics.insight.scene import Scene
from analytics.insight.tallies import Tallied

BLOCK_MINUTES = 5
_BLOCKS_MIN = 4
_RAISED = 2.0
_SHARE_MIN = 0.3
_TENANTS_MIN = 8
_DEVIATION_MIN = 6.0
_TRIALS_MIN = 20
_WORDS = {"slow": "slow spans", "errors": "errors"}


def find(scene: Scene) -> list[Finding]:
    """A finding 'blast_radius' for each region of which many tenants get slower, or fail more often, at once."""
    panel = scene.panel("base")
    if not panel.size or scene.span.recent < BLOCK_MINUTES:
        return []
    return [found for what in _WORDS for found in _of_measure(scene, what)]


def _of_measure(scene: Scene, what: str) -> Iterator[Finding]:
    panel = scene.panel("base")
    keys, of = panel.groups(("region", "tenant"))
    series = scene.measure("base", what)
    if isinstance(series, Tallied) and not _may_stand_out(series.last(BLOCK_MINUTES).by(of, keys.height), keys):
        return
    measure = scene.level("base", what, ("region", "tenant")).measure
    raised, active = raised_blocks(measure, baselines.scan(measure, scene.span).scale, scene.span.baseline)
    for region in keys["region"].unique().sort():
        mine = (keys["region"] == region).to_numpy()
        shares = raised[mine].sum(0) / np.maximum(active[mine].sum(0), 1)
        count, tenants = int(raised[mine, -1].sum()), int(active[mine, -1].sum())
        since = scene.span.count - BLOCK_MINUTES
        if stands_out(shares, count, tenants) and goes_on(measure, mine & raised[:, -1], since):
            which = (panel.keys["region"] == region).to_numpy()
            yield _told(scene, what, str(region), which, shares)


def _may_stand_out(late: Measure, keys: pl.DataFrame) -> bool:
    """Whether so many tenants of a region may be raised in the last block, whatever their scales (1 at least) are."""
    observed, expected, variance, trials = (array.sum(1) for array in late.arrays())
    active = trials >= _TRIALS_MIN
    raised = active & (observed - expected > 0.999 * _RAISED * np.sqrt(np.maximum(variance, 0.25)))
    regions = keys.select("region").with_columns(raised=pl.Series(raised), active=pl.Series(active))
    enough = (pl.col("raised").sum() >= _TENANTS_MIN) & (pl.col("raised").sum() >= _SHARE_MIN * pl.col("active").sum())
    return bool(regions.group_by("region").agg(enough=enough)["enough"].any())


def raised_blocks(measure: Measure | Rated, scale: Floats, baseline: int) -> tuple[Bools, Bools]:
    """Which groups lie beyond _RAISED scales, and which are active: groups x blocks of BLOCK_MINUTES.

    Blocks of the baseline, and as the last one the last minutes.
    """
    blocks = baseline // BLOCK_MINUTES
    minutes = measure.observed.shape[1]
    of = np.full(minutes, blocks + 1, dtype=np.intp)
    of[: blocks * BLOCK_MINUTES] = np.arange(blocks * BLOCK_MINUTES) // BLOCK_MINUTES
    of[minutes - BLOCK_MINUTES :] = blocks
    observed, expected, variance, trials = (
        summed(np.ascontiguousarray(array.T), of, blocks + 2).T[:, : blocks + 1] for array in measure.arrays()
    )
    z = (observed - expected) / (scale[:, None] * np.sqrt(np.maximum(variance, 0.25)))
    active: Bools = trials >= _TRIALS_MIN
    return active & (z > _RAISED), active


def stands_out(shares: Floats, count: int, tenants: int) -> bool:
    """Whether the last of some shares, `count` of so many tenants, is one that the others do not explain."""
    usual = shares[:-1]
    if len(usual) < _BLOCKS_MIN or count < _TENANTS_MIN or shares[-1] < _SHARE_MIN:
        return False
    middle = float(np.median(usual))
    chance = float(np.sqrt(max(middle, 1 / tenants) * (1 - middle) / tenants))
    spread = max(1.4826 * float(np.median(np.abs(usual - middle))), chance)
    return bool(share_of(count, tenants).share_low > usual.max() and shares[-1] - middle >= _DEVIATION_MIN * spread)


def _told(scene: Scene, what: str, region: str, which: Bools, shares: Floats) -> Finding:
    panel, measure = scene.panel("base"), scene.measure("base", what)
    since = scene.span.count - BLOCK_MINUTES
    tenants = hurt(panel, measure, which, since, ("tenant",))
    order = [int(index) for index in np.argsort(-tenants.excess) if tenants.hurt[index]]
    names = tuple(tenants.keys["tenant"].gather(order).to_list())
    usual = max(float(np.median(shares[:-1])), 1e-3)
    share = share_of(round(float(shares[-1]) * int(tenants.active.sum())), int(tenants.active.sum()))
    effect = Effect(
        f"tenants_{what}_share",
        share.share,
        usual,
        share.share / usual,
        share.share_low / usual,
        share.share_high / usual,
    )
    place = Place(region)
    sentence = (
        f"{share.hurt} of {share.active} tenants in {region} have more {_WORDS[what]} than usual "
        f"since {scene.span.time(since):%H:%M}, each a little; usually it is {telling.percent(usual)} of them. No "
        "other finding says why."
    )
    trials = float(measure.trials[which & panel.keys["tenant"].is_in(list(names)).to_numpy()][:, since:].sum())
    return Finding(
        "blast_radius", place, "warning", telling.score(2.0, effect.ratio, 1.0, share.share),
        telling.aware(scene, since), scene.until, effect,
        Confidence("share of tenants beyond their usual scale, against earlier minutes", None, None, int(trials),
                   telling.unknown_share(panel, which, since)),
        sentence, names, exemplars=telling.exemplars(scene, place, since, errors=what == "errors"),
        sql=telling.sql_of(scene, place, since),
    )  # fmt: skip
