"""Where configuration comes from, and what is said of one that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.config import Config
from collector.errors import OperatorError
from collector.settings import environment_variable, load, resolve
from collector.settings_text import effective_toml, shown


def problems(
    content: str = "",
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, object]] | None = None,
    *,
    folder: Path,
) -> list[str]:
    path = folder / "spanlake.toml"
    path.write_text(content)
    with pytest.raises(OperatorError) as raised:
        resolve(str(path), flags or {}, environ or {})
    return str(raised.value).splitlines()[1:]


def test_without_anything_all_is_default() -> None:
    settings = resolve(None, {}, {"PATH": "/bin", "OTEL_SERVICE_NAME": "x"})
    assert settings.config == Config()
    assert settings.origins == {}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spanlake.toml"
    path.write_text('[collector]\ngrpc = "a:1"\nhttp = "a:2"\nrequest_bytes_max = 4096\n[query]\ntimeout_seconds = 5\n')
    environ = {"SPANLAKE_CONFIG": str(path), "SPANLAKE_COLLECTOR_GRPC": "b:1", "SPANLAKE_COLLECTOR_HTTP": "b:2"}
    settings = resolve(None, {"collector": {"http": "c:2", "grpc": None}, "storage": {"data": None}}, environ)
    collector = settings.config.collector
    assert (collector.grpc, collector.http, collector.request_bytes_max) == ("b:1", "c:2", 4096)
    assert settings.config.query.timeout_seconds == 5.0
    assert settings.origins == {
        "collector.grpc": "variable SPANLAKE_COLLECTOR_GRPC",
        "collector.http": "flag --http",
        "collector.request_bytes_max": f"file {path}",
        "query.timeout_seconds": f"file {path}",
    }


def test_the_flag_names_the_file_before_the_variable_does(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text("[dashboard]\nport = 1234\n")
    assert resolve(str(path), {}, {"SPANLAKE_CONFIG": "/nowhere"}).config.dashboard.port == 1234


def test_load_reads_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLAKE_STORAGE_DATA", "elsewhere")
    assert load(None, {}).storage.data == "elsewhere"


def test_lists_have_commas_in_the_environment() -> None:
    config = resolve(None, {}, {"SPANLAKE_MAPPING_TENANT": "customer, resource:team ,"}).config
    assert config.mapping.tenant == ("customer", "resource:team")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[collector]\nrequest_bytes = 1", ["collector.request_bytes (file", "did you mean request_bytes_max?"]),
        ("[collector]\ndata = 'secret-value'", ["collector.data", "did you mean storage.data?"]),
        ("[colector]\ngrpc = 'x:1'", ["[colector]", "did you mean collector?"]),
        ("collector = 5", ["collector = 5", "write [collector]"]),
        ("[dashboard]\nport = '8501'", ['dashboard.port = "8501"', "a whole number", "default 8501"]),
        ("[dashboard]\nport = 70000", ["dashboard.port = 70000", "at most 65535"]),
        ("[dashboard]\nport = true", ["dashboard.port = true", "a whole number"]),
        ("[query]\ntimeout_seconds = inf", ["query.timeout_seconds = inf", "finite"]),
        ("[query]\ntimeout_seconds = nan", ["query.timeout_seconds = nan"]),
        ("[mapping]\ntenant = ['a', 1]", ['mapping.tenant = ["a", 1]', "a list of texts"]),
        ("[collector]\ngrpc = 'localhost'", ["collector.grpc", "expected HOST:PORT", "spanlake.toml"]),
        ("[collector]\ngrpc = '::1:4317'", ["collector.grpc", "expected HOST:PORT"]),
        ("[collector]\ngrpc = 'h:65536'", ["collector.grpc", "expected HOST:PORT"]),
        ("[collector]\ngrpc = '127.0.0.1:4318'", ["collector.grpc", "collector.http", "two different addresses"]),
        ("[collector]\ngrpc = '0.0.0.0:4318'", ["two different addresses"]),
        ("[storage]\ndata = 's3://me:hunter2@bucket/x'", ["storage.data", "does not store to s3://"]),
        ("no TOML", ["is no TOML"]),
    ],
)
def test_a_problem_names_key_value_origin_and_remedy(content: str, expected: list[str], tmp_path: Path) -> None:
    (problem,) = problems(content, folder=tmp_path)
    assert all(part in problem for part in expected), problem
    assert "hunter2" not in problem
    assert "secret-value" not in problem


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems(
        "[query]\ntimeout_seconds = -1\nmemory_bytes_max = 1",
        {"SPANLAKE_DASHBOARD_PORT": "http", "SPANLAKE_COLECTOR_GRPC": "x:1"},
        {"collector": {"grpc": 7}},
        folder=tmp_path,
    )
    text = "\n".join(found)
    assert len(found) == 5
    assert "variable SPANLAKE_COLECTOR_GRPC: unknown" in text
    assert "did you mean SPANLAKE_COLLECTOR_GRPC?" in text
    assert 'dashboard.port = "http" (variable SPANLAKE_DASHBOARD_PORT)' in text
    assert "collector.grpc = 7 (flag --grpc)" in text


def test_a_missing_file_is_a_problem() -> None:
    with pytest.raises(OperatorError, match=r"file /nowhere/x\.toml cannot be read"):
        resolve("/nowhere/x.toml", {}, {})


@pytest.mark.parametrize("address", ["[::1]:4317", "collector.local:0", "127.0.0.1:65535"])
def test_addresses_that_are_good(address: str) -> None:
    assert resolve(None, {"collector": {"grpc": address}}, {}).config.collector.grpc == address


def test_port_0_twice_is_no_collision() -> None:
    resolve(None, {"collector": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"}}, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("postgres://user:hunter2@host/db", '"postgres://***@host/db"'),
        ("s3://bucket?secret_key=hunter2&region=x", '"s3://bucket?secret_key=***&region=x"'),
        (("a", 1, True), '["a", 1, true]'),
    ],
)
def test_values_are_shown_without_secrets(value: object, expected: str) -> None:
    assert shown(value) == expected


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(data=TEXTS, tenant=st.lists(TEXTS, max_size=3), seconds=st.floats(0.001, 1e300), port=st.integers(0, 65535))
def test_the_effective_toml_gives_the_same_configuration_again(
    data: str, tenant: list[str], seconds: float, port: int
) -> None:
    flags: dict[str, dict[str, object]] = {
        "storage": {"data": "d" + data.replace(":", "").replace("=", "")},
        "mapping": {"tenant": [text.replace("=", "").replace("@", "") for text in tenant]},
        "query": {"timeout_seconds": seconds},
        "dashboard": {"port": port},
    }
    settings = resolve(None, flags, {})
    written = tomllib.loads(effective_toml(settings.config, settings.origins))
    assert resolve(None, written, {}).config == settings.config


def test_every_key_has_its_variable() -> None:
    environ = {}
    for section, info in Config.model_fields.items():
        assert info.annotation is not None
        for key, field in info.annotation.model_fields.items():
            value = field.get_default()
            table = shown(value) if isinstance(value, dict) else str(value)
            environ[environment_variable(section, key)] = ",".join(value) if isinstance(value, tuple) else table
    assert resolve(None, {}, environ).config == Config()


def test_settings_start_fast_without_the_engines() -> None:
    code = "import sys, collector.settings; print([m for m in ('duckdb', 'polars', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
