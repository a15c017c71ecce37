"""Who is there against how fast they are: changes of the mix that look like slowness and are none.

A crude share of slow spans (beyond one threshold for all operations of a service) changes when the mix does. Kitagawa's
decomposition (1955) splits its change into a part of rates, at the mean mix, and a part of the mix, at the mean rates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.measures import Floats, summed
from analytics.insight.scene import Scene

_SERVING = ("server",)
_MIX_SHARE_MIN = 0.7
_RATIO_MIN = 1.25
_DEVIATION_MIN = 5.0


def kitagawa(events: Floats, trials: Floats) -> tuple[float, float]:
    """Split the difference of two crude rates: (by rates, by mix). Arrays of strata x (now, before).

    The sum of both is exactly the difference of the crude rates. Strata that one side lacks count with the rate of the
    other, so that what came or went is mix.
    """
    weight = trials / np.maximum(trials.sum(0), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(trials > 0, events / np.maximum(trials, 1e-12), np.nan)
    rate = np.where(np.isnan(rate), rate[:, ::-1], rate)
    rate = np.nan_to_num(rate)
    by_rates = float(((rate[:, 0] - rate[:, 1]) * weight.mean(1)).sum())
    by_mix = float(((weight[:, 0] - weight[:, 1]) * rate.mean(1)).sum())
    return by_rates, by_mix


def find(scene: Scene) -> list[Finding]:
    """A finding 'mix_shift' for each region and service that looks slow for its mix alone."""
    panel = scene.coarse("base")
    serving = panel.keys["kind"].is_in(_SERVING)
    if not serving.any():
        return []
    sub = panel.where(serving)
    keys, of = sub.groups(("region", "service_name"))
    threshold = sub.thresholds(of, keys.height)[0]
    crude = sub.beyond(threshold[of])
    trials = sub.counts["count"]
    minutes = slice(scene.span.count - 5, None)
    before = slice(0, scene.span.baseline)
    found = []
    shares = _by_minute(crude, trials, of, keys.height)
    for index in range(keys.height):
        mine = of == index
        now, usual = (
            float(crude[mine][:, part].sum() / max(trials[mine][:, part].sum(), 1)) for part in (minutes, before)
        )
        if trials[mine][:, minutes].sum() < scene.config.volume_min or now < _RATIO_MIN * usual:
            continue
        noise = 1.4826 * float(np.median(np.abs(shares[index, before] - np.median(shares[index, before]))))
        if now - usual < _DEVIATION_MIN * max(noise, 1e-4):
            continue
        by_rates, by_mix = _split(scene, keys.row(index), float(threshold[index]), (minutes, before))
        if by_mix < _MIX_SHARE_MIN * (by_rates + by_mix):
            continue
        found.append(
            _told(scene, keys.row(index), now, usual, by_mix / max(by_rates + by_mix, 1e-9), noise, shares[index])
        )
    return found


def _split(scene: Scene, names: tuple[str, ...], threshold: float, parts: Sequence[slice]) -> tuple[float, float]:
    """`kitagawa` of the spans that a service serves in a region, by series: slow beyond a cell, in two stretches."""
    panel = scene.panel("base")
    region, service = names
    of_service = telling.every({"region": region, "service_name": service}, panel.keys)
    sub = panel.where(panel.keys["kind"].is_in(_SERVING) & pl.Series(of_service))
    events, trials = (
        np.stack([array[:, part].sum(1) for part in parts], axis=1)
        for array in (sub.beyond(np.full(sub.size, threshold)), sub.counts["count"])
    )
    return kitagawa(events, trials)


def by_mix_of(scene: Scene, region: str, since: int) -> tuple[float, float]:
    """The change of a region's share of slow served spans since then, by rates and by mix (see `kitagawa`)."""
    panel = scene.panel("base")
    which = panel.keys["kind"].is_in(_SERVING) & (panel.keys["region"] == region)
    if not which.any():
        return 0.0, 0.0
    sub = panel.where(which)
    keys, of = sub.groups(("service_name",))
    crude, trials = sub.beyond(sub.thresholds(of, keys.height)[0][of]), sub.counts["count"]
    parts = slice(since, None), slice(0, scene.span.baseline)
    events, tried = (np.stack([array[:, part].sum(1) for part in parts], axis=1) for array in (crude, trials))
    return kitagawa(events, tried)


def _by_minute(crude: Floats, trials: Floats, of: np.ndarray, count: int) -> Floats:
    return summed(crude, of, count) / np.maximum(summed(trials, of, count), 1)


def _told(
    scene: Scene, names: tuple[str, ...], now: float, usual: float, by_mix: float, noise: float, share: Floats
) -> Finding:
    region, service = names
    raised = np.flatnonzero(share <= usual + 3 * noise)
    since = int(raised[-1]) + 1 if len(raised) and raised[-1] + 1 < scene.span.count else scene.span.count - 5
    place = Place(region, service)
    panel = scene.panel("base")
    which = telling.every({"region": region, "service_name": service}, panel.keys)
    effect = Effect("slow_share", now, usual, now / max(usual, 1e-6))
    sentence = (
        f"{service} in {region} looks slow since {scene.span.time(since):%H:%M} and is not: {telling.percent(now)} of "
        "its "
        f"spans take long (usually {telling.percent(usual)}), and {telling.percent(by_mix)} of that change is the mix "
        "of "
        "tenants and operations; each of them is about as fast as before."
    )
    excess = (now - usual) * float(panel.counts["count"][which][:, since:].sum())
    return Finding(
        "mix_shift", place, "info", telling.score(1.0, effect.ratio, excess), telling.aware(scene, since), scene.until,
        effect,
        telling.confidence("Kitagawa decomposition by tenant and operation", None, None,
                           float(panel.counts["count"][which][:, since:].sum())),
        sentence, sql=telling.sql_of(scene, place, since, figure="operation, avg(count) AS mean_count"),
    )  # fmt: skip
