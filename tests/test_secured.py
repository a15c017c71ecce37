"""Import, simulator and demo against a real collector with TLS and tokens; secrets stay out of sight."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import trustme

from collector.config import Config, TenantQuota
from collector.errors import OperatorError
from collector.importing import EndpointSink
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.settings import load
from collector.tenants.tokens import TokenFile
from dashboard.simulation import Simulation, temporary_token
from sample_data.access import Access
from sample_data.emit_files import framed, requests
from sample_data.emit_otlp import RefusedError, RetryError, open_transport

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
AUTHORITY = trustme.CA()
WAIT_SECONDS = 40.0
SECRET = re.compile(r"spanlake_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")


@dataclass
class Secured:
    """The files of a collector with TLS and authentication, and of who sends to it."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def config_file(self) -> Path:
        return self.folder / "spanlake.toml"

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    def config(self) -> Config:
        return load(str(self.config_file), {"storage": {"data": str(self.data)}})

    def token(self) -> str:
        return TokenFile(self.data).add("acme", TenantQuota())[0]


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    leaf = AUTHORITY.issue_cert("127.0.0.1")
    (tmp_path / "server.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    (tmp_path / "server.key").write_bytes(leaf.private_key_pem.bytes())
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    (tmp_path / "spanlake.toml").write_text(
        f'[tls]\ncertificate = "{tmp_path}/server.pem"\nkey = "{tmp_path}/server.key"\n[auth]\nenabled = true\n'
        '[telemetry]\nmetrics = ""\nhealth = ""\n'
    )
    return Secured(tmp_path)


@contextmanager
def running(secured: Secured, command: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    line = [SPANLAKE, command, "--config", str(secured.config_file), "--data", str(secured.data)]
    with (secured.folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*line, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *flags],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        for each in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            each.kill()
        process.kill()
        process.wait()


@contextmanager
def collecting(secured: Secured) -> Iterator[dict[str, str]]:
    with running(secured, "collect") as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())


def tenants(data: Path) -> dict[str, int]:
    try:
        with Lake(Location(data), read_only=True) as lake, lake.read() as reader:
            return dict(reader.rows("SELECT tenant, count(*) FROM spans GROUP BY tenant"))
    except OperatorError:  # there is none yet
        return {}


def until(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not found():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def imports(file: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [SPANLAKE, "import", str(file), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, check=False)


def test_import_shows_its_token_and_trusts_the_authority(secured: Secured) -> None:
    file = secured.folder / "spans.pb"
    file.write_bytes(b"".join(map(framed, requests(1, 200, 50))))
    token = secured.token()
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}"}
    with collecting(secured) as at:
        to = ("--endpoint", f"https://{at['grpc']}")
        done = imports(file, *to, OTEL_EXPORTER_OTLP_CERTIFICATE=str(secured.authority), **headers)
        assert (done.returncode, "200 spans imported" in done.stdout) == (0, True), done.stderr
        refused = imports(file, *to, "--certificate", str(secured.authority), "--headers", "x-scope-orgid=acme")
        assert refused.returncode == 1
        assert "UNAUTHENTICATED: the request has no token" in refused.stderr
        hint = imports(file, "--config", str(secured.config_file), "--data", str(secured.data))
        assert f"--endpoint https://{at['grpc']}" in hint.stderr
    assert tenants(secured.data) == {"acme": 200}
    assert not SECRET.search((secured.folder / "errors").read_text() + done.stderr + done.stdout)


def test_a_certificate_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"--certificate .* expected a PEM file"):
        EndpointSink("https://127.0.0.1:1", certificate=tmp_path)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_simulators_senders_show_their_token_and_check_who_answers(secured: Secured, protocol: str) -> None:
    key = "grpc" if protocol == "grpc" else "http"
    payload = next(requests(1, 50))
    trusted = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(secured.authority)}
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{secured.token()}"}
    with collecting(secured) as at:

        def export(environment: dict[str, str]) -> bytes:
            transport = open_transport(f"https://{at[key]}", protocol, Access.from_environment(environment))
            try:
                return transport.export(payload)
            finally:
                transport.close()

        assert export(trusted | headers) == b""
        assert export({"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": str(secured.folder / "server.pem")} | headers) == b""
        with pytest.raises(RefusedError, match=r"UNAUTHENTICATED|401"):
            export(trusted)
        with pytest.raises(RetryError):
            export(headers)


def test_the_simulator_takes_neither_foreign_headers_nor_tokens_in_its_command_line(secured: Secured) -> None:
    simulation, config = Simulation(3.0, 1), secured.config()
    inherited = {"PATH": "/bin", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=other"}
    with temporary_token(Location(secured.data)) as token:
        found = simulation.environment(config, token, inherited)
        assert [each.tenant for each in TokenFile(secured.data).read()] == ["demo"]
    assert TokenFile(secured.data).read() == ()
    assert found == {
        "PATH": "/bin",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": f"{secured.folder}/server.pem",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}",
    }
    assert "https://127.0.0.1:7" in simulation.command(config, "0.0.0.0:7", with_history=False)
    assert not SECRET.search(repr(Access.from_environment(found)))
    plain = simulation.environment(Config(), None, inherited)
    assert plain == {"PATH": "/bin"}


def test_the_demo_sends_to_its_secured_collector_and_revokes_its_token(secured: Secured) -> None:
    with collecting(secured):
        pass  # a folder that is not new gets no history
    with running(secured, "demo", "--port", "0", "--rate", "20", "--certificate", str(secured.authority)) as process:
        until(lambda: tenants(secured.data).get("demo", 0) > 0, process)
        lines = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]
        assert any("sample_data" in line and "https://" in line for line in lines)
        assert not [line for line in lines if SECRET.search(line)]
        assert [token.tenant for token in TokenFile(secured.data).read()] == ["demo"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout is not None
        output = process.stdout.read()
    assert "OTLP/gRPC   https://127.0.0.1:" in output
    assert f"token       spanlake tokens add TENANT --data {secured.data}" in output
    assert TokenFile(secured.data).read() == ()
    assert not SECRET.search(output + (secured.folder / "errors").read_text())
    assert set(tenants(secured.data)) == {"demo"}
