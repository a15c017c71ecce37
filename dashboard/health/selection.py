"""What the page shows: window, filters and grouping as one value, and its form in the URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from analytics.health import INGRESS, Scope
from analytics.window import Window

WINDOWS_MINUTES: dict[str, int] = {"15m": 15, "1h": 60, "6h": 360, "24h": 1440}
DIMENSIONS: dict[str, str] = {
    "region": "region",
    "tenant": "tenant",
    "service": "service_name",
    "operation": "operation",
}
"""Names in the URL and on the page, and the columns that they stand for."""
CUSTOM_WINDOW_MAX = timedelta(days=31)
EARLIEST = datetime(1971, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
VALUES_MAX = 50
VALUE_CHARACTERS_MAX = 300
_TIME_FORMAT = "%Y-%m-%dT%H:%MZ"


@dataclass(frozen=True)
class Selection:
    """The state of the page.

    `minutes`: length of a window that ends now, or None where `custom` says from when to when.
    `filters`: values by name of dimension (keys of DIMENSIONS); a dimension without values is left out.
    `by`: names of dimensions that make a row, in the order of DIMENSIONS, at least one.
    """

    minutes: int | None = WINDOWS_MINUTES["1h"]
    custom: Window | None = None
    filters: tuple[tuple[str, tuple[str, ...]], ...] = ()
    by: tuple[str, ...] = ("region",)
    log_latency: bool = False

    @property
    def live(self) -> bool:
        """Whether the window moves with the clock."""
        return self.custom is None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to group by."""
        return tuple(DIMENSIONS[name] for name in self.by)

    def window(self, now: datetime) -> Window:
        """The window as it is at `now`."""
        if self.custom is not None:
            return self.custom
        return Window.last(self.minutes or WINDOWS_MINUTES["1h"], now)

    def values(self, dimension: str) -> tuple[str, ...]:
        """The values that a dimension is filtered to; empty for all."""
        return dict(self.filters).get(dimension, ())

    def scope(self) -> Scope:
        """The filters as analytics takes them: every operation once, where it enters a service."""
        return Scope(
            regions=self.values("region"),
            tenants=self.values("tenant"),
            services=self.values("service"),
            operations=self.values("operation"),
            kinds=(INGRESS,),
        )

    def filtered(self, dimension: str, values: Sequence[str]) -> Selection:
        """The same with another filter on one dimension."""
        chosen = dict(self.filters) | {dimension: tuple(dict.fromkeys(values))}
        return replace(self, filters=tuple((d, chosen[d]) for d in DIMENSIONS if chosen.get(d)))

    def drilled(self, group: Mapping[str, str]) -> Selection:
        """Into one row: filtered to its values, grouped by the next dimension that is still open."""
        narrowed = self
        for dimension, value in group.items():
            narrowed = narrowed.filtered(dimension, (value,))
        open_dimensions = [d for d in DIMENSIONS if len(narrowed.values(d)) != 1]
        return replace(narrowed, by=tuple(open_dimensions[:1]) or self.by)


def parse(params: Mapping[str, Sequence[str]]) -> tuple[Selection, list[str]]:
    """Read a URL's query parameters; what makes no sense is left out, each with a note for the reader."""
    notes: list[str] = []
    selection = _parse_window(params, Selection(), notes)
    for dimension in DIMENSIONS:
        selection = selection.filtered(dimension, _parse_values(dimension, params.get(dimension, ()), notes))
    selection = _parse_by(params, selection, notes)
    scale = _last(params, "latency")
    if scale not in {None, "log", "linear"}:
        notes.append(f"latency = {_short(scale)}: expected log or linear")
    return replace(selection, log_latency=scale == "log"), notes


def format_params(selection: Selection) -> dict[str, list[str]]:
    """The query parameters that `parse` reads back as `selection`; defaults are left out."""
    params: dict[str, list[str]] = {}
    if selection.custom is not None:
        params["from"] = [selection.custom.start.strftime(_TIME_FORMAT)]
        params["to"] = [selection.custom.end.strftime(_TIME_FORMAT)]
    elif selection.minutes != Selection().minutes:
        params["window"] = [name for name, minutes in WINDOWS_MINUTES.items() if minutes == selection.minutes]
    params |= {dimension: list(values) for dimension, values in selection.filters}
    if selection.by != Selection().by:
        params["by"] = [",".join(selection.by)]
    if selection.log_latency:
        params["latency"] = ["log"]
    return params


def custom_window(start: datetime, end: datetime) -> Window:
    """A window of the user's own. Raises ValueError, for the reader, where it is empty, too long or out of range."""
    window = Window(_whole_minute(start), _whole_minute(end))
    if window.start < EARLIEST or window.end > LATEST:
        raise ValueError(f"expected times from {EARLIEST.year} to {LATEST.year}")
    if window.end - window.start > CUSTOM_WINDOW_MAX:
        raise ValueError(f"the window is longer than {CUSTOM_WINDOW_MAX.days} days; choose a shorter one")
    return window


def _parse_window(params: Mapping[str, Sequence[str]], selection: Selection, notes: list[str]) -> Selection:
    start, end = _last(params, "from"), _last(params, "to")
    if start is not None or end is not None:
        try:
            window = custom_window(datetime.fromisoformat(start or ""), datetime.fromisoformat(end or ""))
        except (ValueError, OverflowError):
            notes.append(
                f"from = {_short(start)}, to = {_short(end)}: expected two UTC times such as 2026-03-01T12:00Z, "
                f"the second later and within {CUSTOM_WINDOW_MAX.days} days"
            )
        else:
            return replace(selection, minutes=None, custom=window)
    name = _last(params, "window")
    if name is None:
        return selection
    if name not in WINDOWS_MINUTES:
        notes.append(f"window = {_short(name)}: expected one of {', '.join(WINDOWS_MINUTES)}")
        return selection
    return replace(selection, minutes=WINDOWS_MINUTES[name])


def _parse_values(dimension: str, values: Sequence[str], notes: list[str]) -> list[str]:
    return _kept(
        values,
        lambda value: 0 < len(value) <= VALUE_CHARACTERS_MAX and value.isprintable(),
        lambda value: f"{dimension} = {_short(value)}: expected 1 to {VALUE_CHARACTERS_MAX} printable characters",
        notes,
    )


def _parse_by(params: Mapping[str, Sequence[str]], selection: Selection, notes: list[str]) -> Selection:
    text = _last(params, "by")
    if text is None:
        return selection
    names = _kept(
        text.split(","),
        lambda name: name in DIMENSIONS,
        lambda name: f"by = {_short(name)}: expected {', '.join(DIMENSIONS)}, or several with commas",
        notes,
    )
    return replace(selection, by=tuple(d for d in DIMENSIONS if d in names) or selection.by)


def _kept(
    values: Sequence[str], fits: Callable[[str], bool], note: Callable[[str], str], notes: list[str]
) -> list[str]:
    kept = [value for value in values if fits(value)]
    notes.extend(note(value) for value in [v for v in values if not fits(v)][:3])
    if len(kept) > VALUES_MAX:
        notes.append(f"{len(kept)} values: expected at most {VALUES_MAX}; the first {VALUES_MAX} count")
    return kept[:VALUES_MAX]


def _last(params: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = params.get(name)
    return values[-1] if values else None


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 40 else text[:40] + "…")


def _whole_minute(time: datetime) -> datetime:
    utc = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return utc.replace(second=0, microsecond=0)
