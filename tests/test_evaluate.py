"""The judge of findings: the rule of matching and the figures made of it, on made-up findings and truths."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.insight.finding import KINDS as FINDING_KINDS
from benchmarks.evaluate import calibration, together
from benchmarks.evaluate.__main__ import main, scenario
from benchmarks.evaluate.matching import AFTERMATH, GRACE, RULES, names_place, names_tenant, verdict
from benchmarks.evaluate.scoring import judge, misses, table
from sample_data.incidents.catalogue import KINDS
from sample_data.incidents.truth import Truth

START = datetime(2026, 9, 21, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Told:
    kind: str
    region: str | None = None
    service: str | None = None
    operation: str | None = None
    host: str | None = None
    version: str | None = None
    destination: str | None = None
    tenants: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    sentence: str = "something is so"

    @property
    def identity(self) -> str:
        return repr(self)


@dataclass(frozen=True)
class At:
    at: datetime
    told: tuple[Told, ...]
    seconds: float = 0.5


def truth(kind: str, minutes: int = 10, **place: object) -> Truth:
    start = int(START.timestamp())
    return Truth(kind, start, start + 60 * minutes, "latency", 3.0, **place)  # type: ignore[arg-type]  # parts of a place, by name


NOISY = truth(
    "noisy_neighbour", region="eu-west-1", service="cache", host="cache-1", tenants=("amber", "birch"), culprit="cobalt"
)
RELEASE = truth("deploy_errors", region="eu-west-1", service="cache", version="2.0.0", tenants=("amber",))


def test_every_incident_has_a_rule_and_rules_name_kinds_of_findings() -> None:
    assert RULES.keys() == KINDS.keys()
    named = {kind for rule in RULES.values() for kind in rule.causes | rule.symptoms}
    assert named <= set(FINDING_KINDS)
    assert {kind for kind, rule in RULES.items() if not rule.causes} == {"deploy", "restart"}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (Told("noisy_neighbour", host="cache-1"), "cause"),
        (Told("noisy_neighbour", region="eu-west-1"), "cause"),
        (Told("noisy_neighbour", region="eu-west-1", host="cache-2"), "false"),
        (Told("noisy_neighbour", region="us-east-1"), "false"),
        (Told("noisy_neighbour"), "symptom"),
        (Told("latency", region="eu-west-1", service="api-gateway"), "symptom"),
        (Told("latency", region="us-east-1"), "false"),
        (Told("latency", region="eu-west-1", tenants=("zephyr",)), "false"),
        (Told("latency", region="eu-west-1", tenants=("zephyr", "amber")), "symptom"),
        (Told("burst", suspects=("tenant=cobalt",)), "symptom"),
        (Told("burst", suspects=("tenant=zephyr",)), "false"),
        (Told("clock_skew", host="cache-1"), "false"),
    ],
)
def test_kind_place_and_tenants_decide(told: Told, expected: str) -> None:
    assert verdict(told, START + 3 * MINUTE, NOISY) == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (Told("deploy", service="cache", version="2.0.0"), "cause"),
        (Told("deploy", service="topics", version="2.0.0"), "false"),
        (Told("deploy", service="cache", version="1.9.0"), "false"),
        (Told("deploy", service="cache", region="eu-west-1"), "symptom"),
        (Told("errors", region="eu-west-1"), "symptom"),
        (Told("latency", region="eu-west-1"), "false"),
    ],
)
def test_a_release_is_named_by_service_and_version(told: Told, expected: str) -> None:
    assert verdict(told, START + 3 * MINUTE, RELEASE) == expected


def test_time_bounds_what_is_told() -> None:
    end = START + 10 * MINUTE
    cause, symptom = Told("noisy_neighbour", host="cache-1"), Told("latency", region="eu-west-1")
    assert verdict(cause, START, NOISY) == "false"
    assert verdict(cause, START + MINUTE, NOISY) == "cause"
    assert verdict(cause, end + GRACE, NOISY) == "cause"
    assert verdict(cause, end + GRACE + MINUTE, NOISY) == "symptom"
    assert verdict(symptom, end + AFTERMATH, NOISY) == "symptom"
    assert verdict(symptom, end + AFTERMATH + MINUTE, NOISY) == "false"
    assert verdict(cause, START + MINUTE, None) == "false"


def test_the_page_tells_the_rules() -> None:
    page = (Path(__file__).parents[1] / "docs/evaluation.md").read_text()
    rows = {cells[1].strip(" `"): cells for line in page.splitlines() if len(cells := line.split("|")) == 8}
    for kind, rule in RULES.items():
        _, _, _, _, causes, place, symptoms, _ = rows[kind]
        assert set(re.findall(r"`(\w+)`", causes)) == rule.causes
        assert [name for name in place.strip().split(", ") if name] == list(rule.place)
        assert set(re.findall(r"`(\w+)`", symptoms)) == rule.symptoms
    for bound in (GRACE, AFTERMATH):
        assert f"at\nmost {bound // MINUTE} minutes after" in page or f"at most {bound // MINUTE} minutes after" in page


@given(
    kind=st.sampled_from(FINDING_KINDS),
    region=st.sampled_from([None, "eu-west-1", "us-east-1"]),
    minutes=st.integers(-30, 60),
    incident=st.sampled_from([*RULES]),
)
def test_nothing_of_another_region_or_from_before_is_ever_right(
    kind: str, region: str | None, minutes: int, incident: str
) -> None:
    found = verdict(Told(kind, region=region), START + minutes * MINUTE, truth(incident, region="eu-west-1"))
    if region == "us-east-1" or minutes <= 0:
        assert found == "false"


def test_place_and_tenant_are_judged_by_the_narrowest() -> None:
    assert names_place(Told("noisy_neighbour", host="cache-1"), NOISY)
    assert not names_place(Told("noisy_neighbour", region="eu-west-1"), NOISY)
    assert names_tenant(Told("noisy_neighbour", suspects=("tenant=cobalt",), tenants=("amber",)), NOISY)
    assert not names_tenant(Told("noisy_neighbour", suspects=("tenant=amber",)), NOISY)
    assert names_tenant(Told("deploy", tenants=("amber",)), RELEASE)
    assert not names_tenant(Told("deploy", tenants=("amber", "zephyr")), RELEASE)
    assert not names_tenant(Told("deploy"), RELEASE)


def at(minute: int, *told: Told) -> At:
    return At(START + minute * MINUTE, told)


CAUSE, SYMPTOM = (
    Told("noisy_neighbour", host="cache-1", suspects=("tenant=cobalt",)),
    Told("latency", region="eu-west-1"),
)
WRONG = Told("hit_ratio", region="us-east-1")


def test_a_scenario_is_judged_by_first_telling_median_rank_and_different_findings() -> None:
    minutes = [at(1), at(2, SYMPTOM), at(3, SYMPTOM, CAUSE), at(4, CAUSE, SYMPTOM), at(5, CAUSE, WRONG)]
    found = judge("noisy_neighbour", 7, NOISY, minutes)
    assert found.minutes_to_detect == 3
    assert found.rank == 1
    assert (found.right_place, found.right_tenant) == (True, True)
    assert [(one.kind, one.verdict) for one in found.told] == [
        ("latency", "symptom"), ("noisy_neighbour", "cause"), ("hit_ratio", "false")
    ]  # fmt: skip
    assert found.quiet_minutes == 0
    (line,) = misses([found])
    assert "FALSE 12:05 hit_ratio" in line


def test_what_was_open_before_is_not_counted_and_a_silent_engine_misses() -> None:
    silent = judge("noisy_neighbour", 7, NOISY, [at(1, WRONG), at(2, WRONG)], known=[WRONG.identity])
    assert silent.told == ()
    assert not silent.detected
    assert "MISSED" in misses([silent])[0]


def test_a_late_leak_says_how_large_it_was_when_it_was_told() -> None:
    """Twice as slow after 10 of 20 minutes, four times at the end."""
    grows = replace(truth("leak", 20, region="eu-west-1", host="cache-1"), factor=4.0)
    found = judge("leak", 7, grows, [at(10, Told("exhaustion", region="eu-west-1", host="cache-1"))])
    assert found.size_when_told == pytest.approx(2.0)
    assert "LATE 10 min, when it was 2 times the usual" in misses([found])[0]
    assert judge("noisy_neighbour", 7, NOISY, [at(9, CAUSE)]).size_when_told is None
    assert judge("leak", 7, grows, []).size_when_told is None


def test_quiet_time_counts_every_finding_as_an_alarm_once() -> None:
    found = judge("quiet", 7, None, [at(minute, WRONG) for minute in range(720)])
    (row,) = table([found])
    assert (row.false_alarms, row.false_per_day, row.recall) == (1, 2.0, None)
    harmless = judge("deploy", 7, truth("deploy"), [at(1, Told("deploy", version="2.0.0"))])
    assert table([harmless])[0].false_alarms == 1


def test_the_table_sums_up_scenarios() -> None:
    quick = judge("noisy_neighbour", 1, NOISY, [at(1, CAUSE)])
    slow = judge("noisy_neighbour", 2, NOISY, [at(2, WRONG), at(5, SYMPTOM, CAUSE)])
    missed = judge("noisy_neighbour", 3, NOISY, [at(1)])
    vague = judge("noisy_neighbour", 4, NOISY, [at(3, replace(CAUSE, host=None, region="eu-west-1", suspects=()))])
    row, total, large = table([quick, slow, missed, vague])
    assert replace(total, kind=row.kind) == replace(large, kind=row.kind) == row
    assert (row.scenarios, row.recall, row.precision) == (4, 0.75, 0.8)
    assert (row.detect_median, row.detect_p90, row.first) == (3, 5, 0.5)
    assert (row.right_place, row.right_tenant) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (row.findings_per_incident, row.false_alarms, row.false_per_day) == (1.25, 1, None)


def test_small_effects_count_for_the_whole_and_not_for_the_large() -> None:
    small = judge("noisy_neighbour", 1, replace(NOISY, factor=1.5), [at(1)])
    assert [row.kind for row in table([small])] == ["noisy_neighbour", "all with a cause"]
    found = table([small, judge("noisy_neighbour", 2, NOISY, [at(1, CAUSE)])])
    assert [(row.scenarios, row.recall) for row in found] == [(2, 0.5), (2, 0.5), (1, 1.0)]


def test_the_command_judges_real_scenarios(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.evaluate", "--seeds", "3", "--jobs", "1", "--output", str(output)]
    short = ["--kinds", "deploy", "--history-minutes", "25", "--rate", "20"]
    done = subprocess.run([*command, *short], capture_output=True, text=True, check=True, timeout=100)
    assert "| deploy | 1 |" in done.stdout
    content = json.loads(output.read_text())
    assert content["about"]["seeds"] == [3, 3]
    (scenario,) = content["scenarios"]
    assert scenario["truth"]["kind"] == "deploy"
    assert scenario["quiet_minutes"] == 5 + 6  # the release and the time after it


@pytest.mark.parametrize("seeds", ["", "5-1", "many"])
def test_seeds_that_are_none_are_refused(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", seeds])
    assert "expected such as 1-5" in capsys.readouterr().err


def test_runs_are_added_up_from_their_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Told("noisy_neighbour", "eu-west-1", "cache", host="cache-1", suspects=("tenant=cobalt",))
    told = judge("noisy_neighbour", 1, NOISY, [At(START + 2 * MINUTE, (found,))])
    missed = judge("noisy_neighbour", 2, NOISY, [At(START + 2 * MINUTE, ())])
    silent = judge("quiet", 2, None, [At(START + minute * MINUTE, ()) for minute in range(90)])
    files = []
    for number, results in enumerate([[told], [missed, silent]]):
        written = json.loads(json.dumps([scenario(one) for one in results], default=str))
        assert [together.result(one) for one in written] == results
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"about": {"commit": f"c{number}"}, "scenarios": written}))
    assert together.main([str(path) for path in files]) == 0
    out = capsys.readouterr().out
    assert "| noisy_neighbour | 2 | 0.50 |" in out
    assert "commits c0, c1; silent minutes 90 (quiet: 90), false alarms in them 0" in out
    assert "noisy_neighbour seed=2 MISSED" in out


def test_scans_of_quiet_traffic_are_counted_by_their_p(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibration.main(["--seeds", "3", "--minutes", "5", "--every", "5", "--rate", "20"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()[2:]
    scans = sum(int(row.split("|")[3]) for row in rows)
    assert {row.split("|")[1].strip() for row in rows} == {"slow", "very_slow", "errors", "misses"}
    assert last.endswith(f"of {scans} scans")
    assert scans > 100


def test_a_table_of_p_says_how_many_there_would_be() -> None:
    found = pl.DataFrame({"p": [1.0, 0.5, 1e-4, 1e-8], "z": [0.0, 1.0, 6.0, 9.0]})
    table_of_p = calibration.markdown(found.with_columns(measure=pl.lit("errors"), level=pl.lit("region")))
    row, last = table_of_p.splitlines()[2:]
    assert row.startswith("| errors | region | 4 | 2 (0.004) | 2 (0.0004) | 1 (4e-05) |")
    assert row.endswith("| 2 |")
    assert last == "smallest p 1.0e-08 of 4 scans"
