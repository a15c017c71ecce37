"""Retries within requests: a service calls another more often for each request of its own, while these calls fail.

Calls for a request do not change with how much is asked for, and show what is refused before it is served anywhere.
What is called again was called before and failed: there are no more repeated calls than failed ones.
"""

from __future__ import annotations

import numpy as np

from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.measures import Bools, Floats
from analytics.insight.scene import Groups, Scene

_BY = ("region", "service_name", "component")
_CALLING, _SERVING = ("client", "producer"), ("server", "consumer")
_RATIO_MIN = 1.2
_RAISED_SHARE = 0.6
_SPREADS = 3.0
_FAILED_SHARE_MIN = 0.8


def find(scene: Scene) -> list[Finding]:
    """A finding 'retry_storm' for each service that calls a component more often a request, and of which calls fail."""
    panel = scene.panel("base")
    calling, serving = (panel.keys["kind"].is_in(kinds).to_numpy() for kinds in (_CALLING, _SERVING))
    if not calling.any() or not serving.any():
        return []
    keys, of = panel.groups(_BY)
    groups = scene.over(keys, of, scene.measure("base", "errors").only(calling), "errors")
    found = []
    for index in np.flatnonzero(groups.flagged):
        region, service, _ = keys.row(int(index))
        requests = serving & telling.every({"region": region, "service_name": service}, panel.keys)
        asked = panel.counts["count"][requests].sum(0)
        told = _storm(scene, groups, int(index), calling & (of == index), asked)
        found += [told] if told is not None else []
    return found


def repeated(calls: Floats, requests: Floats, failed: Floats, baseline: int, since: int) -> tuple[float, float] | None:
    """Calls a request since then and usually, where they rose by repeating what failed; None where they did not.

    Arrays by minute; `failed` are calls that failed beyond the usual, `baseline` minutes tell what is usual.
    """
    each = calls / np.maximum(requests, 1.0)
    usual = float(np.median(each[:baseline])) if baseline else 0.0
    now, asked = each[since:], requests[since:]
    if usual <= 0 or len(now) < 2 or asked.min() < 1:
        return None
    mad = 1.4826 * float(np.median(np.abs(each[:baseline] - usual)))
    limit = usual + _SPREADS * max(mad, float(np.sqrt(usual / np.median(asked))))
    more = float(calls[since:].sum() - usual * asked.sum())
    raised = (now > limit).mean() >= _RAISED_SHARE and now[-1] > limit
    rose = float(calls[since:].sum() / asked.sum())
    if not raised or rose < _RATIO_MIN * usual or failed[since:].sum() < _FAILED_SHARE_MIN * more:
        return None
    return rose, usual


def _storm(scene: Scene, groups: Groups, index: int, which: Bools, requests: Floats) -> Finding | None:
    panel, scan, since = scene.panel("base"), groups.scan, int(groups.scan.since[index])
    measure = scene.measure("base", "errors")
    failed = (groups.measure.observed - groups.measure.expected)[index]
    found = repeated(panel.counts["count"][which].sum(0), requests, failed, scene.span.baseline, since)
    if found is None:
        return None
    now, usual = found
    region, service, component = groups.keys.row(index)
    place = Place(region, service)
    hurt = telling.impact(scene, panel, measure, which, since)
    effect = Effect("calls_per_request", now, usual, now / usual)
    sentence = (
        f"{service[:1].upper()}{service[1:]} in {region} calls {component or 'others'} {now:.2f} times a request "
        f"(usually {usual:.2f}) since {scene.span.time(since):%H:%M} while these calls fail: it repeats them; "
        f"{hurt.words()} are hurt."
    )
    return Finding(
        "retry_storm", place, "critical", telling.score(5.5, effect.ratio, float(failed[since:].sum()), hurt.share),
        telling.aware(scene, since), scene.until, effect,
        telling.confidence("scan of failed calls; calls a request against their median and MAD", float(scan.p[index]),
                           float(groups.p_corrected[index]), float(scan.trials[index]),
                           telling.unknown_share(panel, which, since)),
        sentence, hurt.tenants, exemplars=telling.exemplars(scene, place, since, errors=True),
        sql=telling.sql_of(scene, place, since, figure="sum(count) FILTER (kind = 'client') AS calls"),
    )  # fmt: skip
