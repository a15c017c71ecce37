"""Who sends: names, tokens, the rule of precedence, and the whole way through a real collector."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import stat
import string
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.config import (
    AuthConfig,
    CollectorConfig,
    Config,
    QuotasConfig,
    StorageConfig,
    TenantQuota,
    TlsConfig,
)
from collector.errors import InvalidRequestError, OperatorError
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.settings import resolve
from collector.settings_text import effective_toml
from collector.tenants.counters import OTHERS, UNAUTHENTICATED, TenantCounters
from collector.tenants.errors import PermissionDeniedError, UnauthenticatedError
from collector.tenants.gate import LOOK_SECONDS, Gate, exposure_warning
from collector.tenants.names import NAME_CHARS_MAX, NAME_PATTERN, InvalidTenantError, checked_name, is_name
from collector.tenants.tokens import TokenFile, Tokens

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
FIRST = string.ascii_letters + string.digits + "_"
REST = FIRST + ".:@/+=*'!~-"


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def gate(folder: Path, enabled: bool = True, clock: Callable[[], float] = time.monotonic) -> Gate:
    return Gate(AuthConfig(enabled=enabled), QuotasConfig(), folder, TenantCounters(), clock)


# Names.


@settings(deadline=None)
@given(st.text(max_size=8) | st.text(st.sampled_from(REST), min_size=1, max_size=NAME_CHARS_MAX + 2))
def test_a_name_is_what_the_rule_says_in_python_and_in_arrow(text: str) -> None:
    expected = 0 < len(text) <= NAME_CHARS_MAX and text[0] in FIRST and all(c in REST for c in text)
    assert is_name(text) == expected
    in_arrow = (
        pc.match_substring_regex(pa.array([text]), NAME_PATTERN)[0].as_py() and len(text) <= NAME_CHARS_MAX
    )
    assert in_arrow == expected


@pytest.mark.parametrize("name", ["acme\n", "(other)", "a b", "é", "", "x" * 151, "-a", "."])
def test_a_bad_name_is_told(name: str) -> None:
    with pytest.raises(InvalidTenantError, match="150 letters, digits"):
        checked_name(name)


# Precedence.


@pytest.mark.parametrize(
    ("org_ids", "tenant"),
    [([], None), ([""], None), ([b" "], None), ([b"acme"], "acme"), ([" acme "], "acme"), (["a", "a"], "a")],
)
def test_without_authentication_the_header_names_the_tenant(
    tmp_path: Path, org_ids: list[str | bytes], tenant: str | None
) -> None:
    sender = gate(tmp_path, enabled=False).identify(org_ids, ["Bearer whatever"])
    assert (sender.tenant, sender.name) == (tenant, tenant or "default")


@pytest.mark.parametrize("org_ids", [["a", "b"], ["a b"], [b"\xff"], ["x" * 151]])
def test_a_header_that_names_nobody_is_refused(tmp_path: Path, org_ids: list[str | bytes]) -> None:
    with pytest.raises(InvalidRequestError, match="X-Scope-OrgID"):
        gate(tmp_path, enabled=False).identify(org_ids, [])


def test_with_authentication_the_token_names_the_tenant(tmp_path: Path) -> None:
    text, _ = TokenFile(tmp_path).add("acme", TenantQuota())
    found = gate(tmp_path)
    for org_ids in ([], ["acme"], [""]):
        assert found.identify(org_ids, [f"Bearer {text}"]).tenant == "acme"
    assert found.identify([], [f"bearer  {text} ".encode()]).tenant == "acme"
    with pytest.raises(PermissionDeniedError, match="of tenant 'acme', X-Scope-OrgID names 'other'"):
        found.identify(["other"], [f"Bearer {text}"])


def bad_credentials(text: str) -> list[list[str | bytes]]:
    return [
        [], [""], ["Bearer"], [text], [f"Basic {text}"], [f"Bearer {text[:-1]}"], [f"Bearer {text}x"],
        [f"Bearer {text[:-1]}{'A' if text[-1] != 'A' else 'B'}"], [f"Bearer spanlake_{'0' * 12}_{text[-43:]}"],
        [b"Bearer \xff\x00"], [f"Bearer {text}", "Bearer other"], ["Bearer " + "é" * 50],
    ]  # fmt: skip


def test_every_other_credential_is_refused_and_never_told(tmp_path: Path) -> None:
    text, _ = TokenFile(tmp_path).add("acme", TenantQuota())
    found = gate(tmp_path)
    for authorizations in bad_credentials(text):
        with pytest.raises(UnauthenticatedError, match="Authorization: Bearer TOKEN") as raised:
            found.identify([], authorizations)
        assert text[20:40] not in str(raised.value)
    assert found.counters.tenants()[UNAUTHENTICATED].refused_requests == len(bad_credentials(text))


# Tokens.


def test_only_a_digest_of_a_token_is_kept(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    text, token = file.add("acme", TenantQuota(spans_per_second=5))
    content = file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert text not in content
    assert text.rpartition("_")[2] not in content
    assert file.read() == (token,)
    assert token.limits == TenantQuota(spans_per_second=5)
    assert re.fullmatch(r"spanlake_[0-9a-f]{12}_[\w-]{43}", text)
    assert Tokens(file.read()).find(text) == token
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_tokens_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=TokenFile(tmp_path).add, args=(f"tenant-{i}", TenantQuota()))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.tenant for token in TokenFile(tmp_path).read()} == {f"tenant-{i}" for i in range(8)}


def test_changes_are_taken_over_when_asked_a_second_later(tmp_path: Path) -> None:
    clock, file = Clock(), TokenFile(tmp_path)
    found = gate(tmp_path, clock=clock)
    text, token = file.add("acme", TenantQuota())
    with pytest.raises(UnauthenticatedError):
        found.identify([], [f"Bearer {text}"])
    clock.now += LOOK_SECONDS
    assert found.identify([], [f"Bearer {text}"]).tenant == "acme"
    file.revoke(token.id)
    clock.now += LOOK_SECONDS
    with pytest.raises(UnauthenticatedError):
        found.identify([], [f"Bearer {text}"])


def test_a_file_that_breaks_leaves_the_former_tokens_and_one_that_goes_leaves_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, file = Clock(), TokenFile(tmp_path)
    text, _ = file.add("acme", TenantQuota())
    found = gate(tmp_path, clock=clock)
    file.path.write_text("{")
    clock.now += LOOK_SECONDS
    with caplog.at_level(logging.WARNING):
        assert found.identify([], [f"Bearer {text}"]).tenant == "acme"
    assert "the former ones stay" in caplog.text
    file.path.unlink()
    clock.now += LOOK_SECONDS
    with pytest.raises(UnauthenticatedError):
        found.identify([], [f"Bearer {text}"])


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"tokens": [{"id": 1}]}', '{"version": 1, "unknown": 2}', "\xff"]
)
def test_a_broken_file_stops_the_start(tmp_path: Path, content: str) -> None:
    TokenFile(tmp_path).path.write_bytes(content.encode("latin-1"))
    with pytest.raises(OperatorError, match=r"tokens\.json' is no file of tokens"):
        gate(tmp_path)
    gate(tmp_path, enabled=False)


def test_no_token_at_all_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate(tmp_path)
    assert "every request is refused until `spanlake tokens add TENANT`" in caplog.text


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SPANLAKE, "tokens", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    added = run("add", "acme", "--spans-per-second", "100", "--burst-seconds", "2", "--data", data)
    text = added.stdout.strip()
    (token,) = TokenFile(tmp_path / "data").read()
    assert Tokens((token,)).find(text) == token
    assert token.limits == TenantQuota(spans_per_second=100, burst_seconds=2)
    listed = run("list", "--data", data).stdout
    assert listed.split()[:2] == [token.id, "acme"]
    assert listed.split()[3:] == ["spans_per_second=100", "burst_seconds=2"]
    assert text[-43:] not in listed
    assert run("revoke", token.id, "--data", data).returncode == 0
    assert run("list", "--data", data).stdout == ""
    again = run("revoke", token.id, "--data", data)
    assert (again.returncode, "no token's id" in again.stderr) == (1, True)
    for wrong in (["a b"], ["acme", "--spans-per-second", "nan"], ["acme", "--bytes-per-second", "-1"]):
        refused = run("add", *wrong, "--data", data)
        assert refused.returncode in (1, 2)
        assert "Traceback" not in refused.stderr


# Configuration.


def test_quotas_of_tenants_come_from_tables_and_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "spanlake.toml"
    path.write_text('[quotas]\nburst_seconds = 5\n[quotas.tenants."acme/eu"]\nspans_per_second = 7\n')
    settings = resolve(str(path), {}, {})
    assert settings.config.quotas.tenants == {"acme/eu": TenantQuota(spans_per_second=7)}
    written = effective_toml(settings.config, settings.origins)
    assert tomllib.loads(written)["quotas"]["tenants"] == {"acme/eu": {"spans_per_second": 7}}
    environ = {"SPANLAKE_QUOTAS_TENANTS": "{b = {bytes_per_second = 1.5}}"}
    assert resolve(str(path), {}, environ).config.quotas.tenants == {"b": TenantQuota(bytes_per_second=1.5)}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('[quotas.tenants."a b"]', 'quotas.tenants.a b = "a b" (file '),
        ("[quotas.tenants.a]\nspans_per_second = -1", "quotas.tenants.a.spans_per_second = -1 (file "),
        ("[quotas.tenants.a]\nspans = 'secret'", "quotas.tenants.a.spans (file "),
        ("[quotas]\ntenants = 5", "quotas.tenants = 5 (file "),
    ],
)
def test_a_bad_table_is_told(tmp_path: Path, table: str, told: str) -> None:
    path = tmp_path / "spanlake.toml"
    path.write_text(table)
    with pytest.raises(OperatorError) as raised:
        resolve(str(path), {}, {})
    assert told in str(raised.value)
    assert "secret" not in str(raised.value)


# Counters.


def test_counters_name_a_bounded_number_of_tenants() -> None:
    counters = TenantCounters(tenants_max=2)
    for tenant in ("a", "b", "c", "d", "a"):
        counters.admitted(tenant, 10, 3, 1)
        counters.refused(tenant, 5, None)
    found = counters.tenants()
    assert list(found) == ["a", "b", OTHERS]
    assert [found[name].spans for name in found] == [6, 3, 6]
    assert [found[name].refused_uncounted_requests for name in found] == [2, 1, 2]
    assert (found["a"].bytes, found["a"].rejected_spans, found["a"].refused_bytes) == (20, 2, 10)


# Exposure.


def configured(grpc_address: str, http_address: str = "127.0.0.1:4318", **sections: object) -> Config:
    return Config(collector=CollectorConfig(grpc=grpc_address, http=http_address), **sections)  # type: ignore[arg-type]  # settings by name


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.3.2.1:4317", "[::1]:4317", "localhost:4317"])
def test_loopback_is_not_warned_of(address: str) -> None:
    assert exposure_warning(configured(address, address)) is None


@pytest.mark.parametrize("address", ["0.0.0.0:4317", "[::]:4317", "10.0.0.1:4317", "collector.example:4317"])
def test_whatever_others_reach_without_authentication_is_warned_of(address: str) -> None:
    warning = exposure_warning(configured(address))
    assert warning is not None
    assert warning.startswith(
        f"collector.grpc = {address!r} can be reached from other machines without authentication"
    )
    assert "auth.enabled = true" in warning
    assert "collector.http" not in warning
    assert exposure_warning(configured(address, auth=AuthConfig(enabled=True))) is None
    mutual = TlsConfig(certificate="c", key="k", client_ca="ca")
    assert exposure_warning(configured(address, tls=mutual)) is None


# The whole way.


def payload(tenant: str = "attribute") -> bytes:
    message = ExportTraceServiceRequest()
    span = (
        message.resource_spans.add().scope_spans.add().spans.add(trace_id=os.urandom(16), span_id=b"\1" * 8)
    )
    span.start_time_unix_nano = span.end_time_unix_nano = time.time_ns()
    span.attributes.add(key="tenant.id").value.string_value = tenant
    return message.SerializeToString()


class Collector:
    """A running `spanlake collect` with authentication."""

    def __init__(self, data: Path, address: str = "127.0.0.1:0", auth: str = "true") -> None:
        environment = {**os.environ, "SPANLAKE_AUTH_ENABLED": auth}
        environment |= {"SPANLAKE_TELEMETRY_METRICS": "", "SPANLAKE_TELEMETRY_HEALTH": ""}
        self.process = subprocess.Popen(
            [SPANLAKE, "collect", "--data", str(data), "--grpc", "127.0.0.1:0", "--http", address],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.ready = json.loads(line)

    def post(self, headers: dict[str, str]) -> tuple[int, dict[str, str], Status]:
        connection = http.client.HTTPConnection(self.ready["http"], timeout=30)
        try:
            connection.request(
                "POST", "/v1/traces", payload(), {"Content-Type": "application/x-protobuf", **headers}
            )
            response = connection.getresponse()
            body = response.read()
            told = Status.FromString(body) if response.status != 200 else Status()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, told
        finally:
            connection.close()

    def export(self, metadata: list[tuple[str, str]]) -> str:
        with grpc.insecure_channel(self.ready["grpc"]) as channel:
            try:
                channel.unary_unary(EXPORT)(payload(), metadata=metadata, timeout=30)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture
def start() -> Iterator[Callable[..., Collector]]:
    started: list[Collector] = []

    def start(*arguments: object, **keywords: object) -> Collector:
        started.append(Collector(*arguments, **keywords))  # type: ignore[arg-type]  # what was handed over
        return started[-1]

    yield start
    for collector in started:
        if collector.process.poll() is None:
            collector.process.kill()
        collector.process.communicate()


def test_a_client_writes_into_its_own_tenant_and_no_other(
    start: Callable[..., Collector], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    text, _ = TokenFile(data).add("acme", TenantQuota())
    collector = start(data)
    bearer = {"Authorization": f"Bearer {text}"}
    assert collector.post(bearer)[0] == 200
    assert collector.post(bearer | {"X-Scope-OrgID": "acme"})[0] == 200
    assert collector.export([("authorization", f"Bearer {text}")]) == "OK"
    status, headers, told = collector.post({})
    assert (status, headers["www-authenticate"], told.code) == (401, "Bearer", 16)
    assert "retry-after" not in headers
    status, _, told = collector.post(bearer | {"X-Scope-OrgID": "other"})
    assert (status, told.code) == (403, 7)
    assert collector.post({"X-Scope-OrgID": "acme"})[0] == 401
    assert collector.export([]) == "UNAUTHENTICATED"
    assert (
        collector.export([("authorization", f"Bearer {text}"), ("x-scope-orgid", "other")])
        == "PERMISSION_DENIED"
    )
    later, token = TokenFile(data).add("late", TenantQuota())
    await_status(lambda: collector.post({"Authorization": f"Bearer {later}"})[0], 200)
    TokenFile(data).revoke(token.id)
    await_status(lambda: collector.post({"Authorization": f"Bearer {later}"})[0], 401)
    errors = collector.stop()
    assert text[-43:] not in errors
    assert later[-43:] not in errors
    with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake, lake.read() as reader:
        rows = reader.rows("SELECT DISTINCT tenant, attributes['tenant.id'] FROM spans ORDER BY tenant")
    assert rows == [("acme", "attribute"), ("late", "attribute")]


def await_status(ask: Callable[[], int], expected: int) -> None:
    deadline = time.monotonic() + 30
    while (found := ask()) != expected:
        assert time.monotonic() < deadline, found


def test_an_open_collector_says_so_once(start: Callable[..., Collector], tmp_path: Path) -> None:
    """127.1 is loopback in a spelling that nobody relies on: as good as an unknown name."""
    collector = start(tmp_path / "data", "127.1:0", "false")
    assert collector.post({"X-Scope-OrgID": "acme"})[0] == 200
    assert collector.stop().count("without authentication") == 1
