"""Hosts that differ from their peers, and the noisy neighbours that make them so.

Noisy neighbour, after CPI2 (Zhang et al., EuroSys 2013): the victims' series is the share of slow spans of *all other*
tenants on the host; a suspect's usage is its offered load there, in seconds of work a second at the durations of its
own baseline (Little's law), so that the slowness itself does not count as usage, less what it then asks of the
service's other hosts, so that its bursts on all of them do not count either. Suspects are ranked by the
correlation of usage and victims' excess; it is confirmed by a permutation test over circular shifts of the series,
which keeps their autocorrelation, corrected over all suspects (Benjamini and Hochberg). A suspect's load must not
rise after the victims'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analytics.insight import telling
from analytics.insight.finding import Finding, Kind, Place
from analytics.insight.locating import locate
from analytics.insight.measures import Bools, Floats, Measure, Rated, summed
from analytics.insight.panel import Panel
from analytics.insight.scene import Groups, Scene

BY = ("region", "service_name", "host")
SERVING = ("server", "consumer", "internal", "unspecified")
_SHARE_OF_SERVICE = 0.55
_PEERS_RATIO_MAX = 0.6
_LOAD_RATIO_MIN = 1.4
_LOAD_SHARE_RISE_MIN = 0.05
_CORRELATION_MIN = 0.5
_SHIFTS_P_MAX = 0.1
_UNDECIDED_MINUTES = 5
"""By then it is clear whether a tenant's load goes with the trouble, or what is wrong with the one tenant that alone
is hurt; before, the host is not blamed instead."""
_ELSEWHERE_MAX = 0.5
"""Most of the rise of a suspect's load that its rise on the peers may be."""


@dataclass(frozen=True)
class Suspect:
    """A tenant whose load on a host goes with the others' trouble there."""

    tenant: str
    correlation: float
    p: float
    p_corrected: float
    load_ratio: float
    load_share: float

    @property
    def is_clear(self) -> bool:
        """Whether load and trouble go together clearly enough to say so."""
        return self.correlation >= _CORRELATION_MIN and self.p_corrected <= _SHIFTS_P_MAX


def find(scene: Scene) -> list[Finding]:
    """Findings 'noisy_neighbour' and 'instance', a host each."""
    panel = scene.panel("host")
    if not panel.size:
        return []
    serving = panel.keys["kind"].is_in(SERVING).to_numpy()
    found: dict[tuple[str, ...], tuple[float, Finding]] = {}
    for what in ("slow", "very_slow", "errors"):
        _judge(scene, what, serving, found)
        if what == "very_slow":
            scene.forget("host", what)
    return [finding for _, finding in found.values()]


def _judge(scene: Scene, what: str, serving: Bools, found: dict[tuple[str, ...], tuple[float, Finding]]) -> None:
    """Put into `found` the hosts that a measure shows more clearly than those before."""
    measure = scene.measure("host", what).only(serving)
    keys, of = scene.panel("host").groups(BY)
    groups = scene.over(keys, of, measure, what)
    if not groups.flagged.any():
        return
    for index in np.flatnonzero(groups.flagged & _peers(groups)):
        place = tuple(str(value) for value in keys.row(int(index)))
        z = float(groups.scan.z[index])
        if place not in found or z > found[place][0]:
            told = _host(scene, groups, int(index), what, measure, (of == index) & serving)
            if told is not None:
                found[place] = (z, told)


def _peers(groups: Groups) -> Bools:
    """Which hosts hold most of their service's excess, while their peers have clearly less of it than they."""
    service = groups.keys.select(pl.struct("region", "service_name").rank("dense").cast(pl.Int64) - 1).to_series()
    of = service.to_numpy().astype(np.intp)
    count = int(of.max(initial=-1)) + 1
    scan = groups.scan
    last = np.arange(groups.measure.observed.shape[1])[None, :] >= scan.since[:, None]
    excess = np.where(last, groups.measure.observed - groups.measure.expected, 0).sum(1)
    sums = np.zeros((len(of), 4))
    for index in np.flatnonzero(groups.flagged):
        same = of == of[index]
        since = int(scan.since[index])
        observed, expected = (
            array[same][:, since:].sum() for array in (groups.measure.observed, groups.measure.expected)
        )
        positive = np.maximum((groups.measure.observed - groups.measure.expected)[same][:, since:].sum(1), 0).sum()
        others_observed = observed - groups.measure.observed[index, since:].sum()
        others_expected = expected - groups.measure.expected[index, since:].sum()
        mine = groups.measure.observed[index, since:].sum() / max(groups.measure.expected[index, since:].sum(), 0.5)
        others = others_observed / max(others_expected, 0.5)
        sums[index] = (excess[index] / max(positive, 1e-9), others / max(mine, 1e-9), same.sum(), count)
    found: Bools = (sums[:, 0] >= _SHARE_OF_SERVICE) & (sums[:, 1] <= _PEERS_RATIO_MAX) & (sums[:, 2] >= 2)
    return found


def _host(scene: Scene, groups: Groups, index: int, what: str, measure: Rated, which: Bools) -> Finding | None:
    """What is wrong with a host; None as long as a tenant may have brought it, or alone has it."""
    panel, scan = scene.panel("host"), groups.scan
    region, service, host = (str(value) for value in groups.keys.row(index))
    since = int(scan.since[index])
    place = Place(region, service, host=host)
    blamed = suspects(scene, panel, measure, which, since)
    culprit = next((one for one in blamed if one.is_clear), None)
    victims = which & (panel.keys["tenant"] != culprit.tenant).to_numpy() if culprit else which
    alone = _alone(panel, measure.rows(victims), victims, since)
    if not culprit and (blamed or alone) and scene.span.count - since <= _UNDECIDED_MINUTES:
        return None
    effect = (
        telling.share_effect("error_rate", measure, victims, since)
        if what == "errors"
        else telling.latency_effect(panel, victims, since, what)
    )
    hurt = telling.impact(scene, panel, measure, victims, since)
    if alone:  # Beside so much of one, a minute or two of another are hurt by chance.
        hurt = replace(hurt, tenants=(alone,))
    figure = f"errors {telling.times(effect)}" if what == "errors" else telling.times(effect)
    begin = f"since {scene.span.time(since):%H:%M}"
    confidence = telling.confidence(
        "scan of the last minutes against the host's own baseline and its peers", float(scan.p[index]),
        float(groups.p_corrected[index]), float(scan.trials[index]), telling.unknown_share(panel, which, since),
    )  # fmt: skip
    kind: Kind = "instance"
    weight = 5.0
    sentence = (
        f"{service} on host {host} in {region} differs from its peers {begin}: {figure}; {hurt.words()} are hurt."
    )
    if culprit:
        kind, weight = "noisy_neighbour", 6.0
        confidence = telling.confidence(
            "correlation of load and the others' excess, permuted by circular shifts", culprit.p, culprit.p_corrected,
            float(scan.trials[index]), telling.unknown_share(panel, which, since),
        )  # fmt: skip
        sentence = (
            f"The load of tenant {culprit.tenant} on host {host} ({service} in {region}) is "
            f"{culprit.load_ratio:.1f} times the usual and correlates ({culprit.correlation:.2f}) with slower spans of "
            f"the others there {begin}: "
            f"{figure}; {hurt.words()} are hurt."
        )
    excess = float((groups.measure.observed - groups.measure.expected)[index, since:].sum())
    return Finding(
        kind, place, telling.severity(effect.ratio, hurt.share),
        telling.score(weight, effect.ratio, excess, hurt.share), telling.aware(scene, since), scene.until, effect,
        confidence, sentence, hurt.tenants, (f"tenant={culprit.tenant}",) if culprit else (f"host={host}",),
        exemplars=telling.exemplars(scene, Place(region, service), since, errors=what == "errors"),
        sql=telling.sql_of(scene, place, since, "rollup_host_1m"),
    )  # fmt: skip


def _alone(panel: Panel, mine: Measure | Rated, victims: Bools, since: int) -> str | None:
    """The one tenant that holds nearly all of the excess on a host, where one does."""
    excess, expected = (array[:, since:].sum(1) for array in (mine.observed - mine.expected, mine.expected))
    return locate(panel.keys.filter(pl.Series(victims)), excess, expected, ("tenant",))[0].get("tenant")


def suspects(scene: Scene, panel: Panel, measure: Rated, which: Bools, since: int) -> list[Suspect]:
    """Tenants whose load on the host, and not on its peers, rose with the trouble of the others there, best first."""
    tenants = panel.keys.filter(pl.Series(which)).select("tenant").unique(maintain_order=True).with_row_index("group")
    of = panel.keys.filter(pl.Series(which)).join(tenants, on="tenant", maintain_order="left")["group"].to_numpy()
    of, count = of.astype(np.intp), tenants.height
    if count < 3:
        return []
    load = summed(_offered_load(panel, which), of, count)
    excess = summed((measure.observed - measure.expected)[which], of, count)
    variance = summed(measure.variance[which], of, count)
    baseline = slice(0, scene.span.baseline)
    before, now = load[:, baseline].mean(1), load[:, since:].mean(1)
    ratio = now / np.maximum(before, 1e-12)
    share_before, share = before / max(before.sum(), 1e-12), now / max(now.sum(), 1e-12)
    candidates = np.flatnonzero((ratio >= _LOAD_RATIO_MIN) & (share >= share_before + _LOAD_SHARE_RISE_MIN))
    if not len(candidates):
        return []
    others = (excess.sum(0) - excess[candidates]) / np.sqrt(np.maximum(variance.sum(0) - variance[candidates], 0.25))
    peers = _ratio_elsewhere(scene, panel, which, tenants["tenant"])
    # What it asks of all hosts alike is left out: nobody on this one alone is hurt by it.
    alone = load - before[:, None] * peers
    correlation, p = shifted_correlation(alone[candidates], others)
    corrected = multipletests(p, method="fdr_bh")[1]
    elsewhere = peers[:, since:].mean(1)[candidates]
    found = [
        Suspect(str(tenants["tenant"][int(i)]), float(r), float(p_i), float(q), float(ratio[i]), float(share[i]))
        for i, r, p_i, q, peer in zip(candidates, correlation, p, corrected, elsewhere, strict=True)
        if _not_later(load[i], since, scene) and peer - 1 <= _ELSEWHERE_MAX * (ratio[i] - 1)
    ]
    rise = {suspect.tenant: (suspect.load_ratio - 1) * suspect.load_share * suspect.correlation for suspect in found}
    return sorted(found, key=lambda suspect: -rise[suspect.tenant])


def shifted_correlation(usage: Floats, excess: Floats) -> tuple[Floats, Floats]:
    """Correlations (Pearson) row by row, and their p by circular shifts: the share of shifts that correlate as well."""
    n = usage.shape[1]
    a, b = (stats.zscore(array, axis=1) for array in (usage, excess))
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    spectrum = np.fft.rfft(a, axis=1) * np.conj(np.fft.rfft(b, axis=1))
    correlations = np.fft.irfft(spectrum, n=n, axis=1) / n
    p = (correlations >= correlations[:, :1] - 1e-9).mean(1)
    return correlations[:, 0], p


def _offered_load(panel: Panel, which: Bools) -> Floats:
    """Seconds of work a second that each series brings, at the mean duration of its own baseline."""
    count, busy = panel.counts["count"][which], panel.counts["busy_ns"][which]
    early = slice(0, panel.span.baseline)
    known = count[:, early].sum(1)
    overall = busy[:, early].sum() / max(known.sum(), 1)
    mean = np.where(known >= 20, busy[:, early].sum(1) / np.maximum(known, 1), overall)
    load: Floats = count * mean[:, None] / 60e9
    return load


def _ratio_elsewhere(scene: Scene, panel: Panel, which: Bools, tenants: pl.Series) -> Floats:
    """How many times its usual load each tenant brings to the same service's other hosts in the region, by minute.

    Who asks more of all of them bursts, and is no neighbour of one host.
    """
    place = panel.keys.filter(pl.Series(which)).row(0, named=True)
    peers = telling.every({name: place[name] for name in BY[:2]}, panel.keys)
    peers &= (panel.keys["host"] != place["host"]).to_numpy() & panel.keys["kind"].is_in(SERVING).to_numpy()
    number = dict(zip(tenants, range(len(tenants)), strict=True))
    peers &= panel.keys["tenant"].is_in(list(number)).to_numpy()
    of = panel.keys["tenant"].filter(pl.Series(peers)).replace_strict(number, return_dtype=pl.Int64).to_numpy()
    count = summed(panel.counts["count"][peers], of.astype(np.intp), len(tenants))
    ratio: Floats = (count + 1) / (count[:, : scene.span.baseline].mean(1, keepdims=True) + 1)
    return ratio


def _not_later(load: Floats, since: int, scene: Scene) -> bool:
    """Whether the load rose at most a minute after the trouble began."""
    usual = load[: scene.span.baseline]
    limit = np.median(usual) + 2 * 1.4826 * np.median(np.abs(usual - np.median(usual)))
    return bool((load[max(0, since - 3) : since + 2] > limit).any())
