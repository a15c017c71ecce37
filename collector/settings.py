"""Where the configuration comes from: a TOML file, the environment over it, flags over both.

`SPANLAKE_CONFIG` names the file where no flag does; `SPANLAKE_<SECTION>_<KEY>` sets one key, a list with
commas between its items.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from collector.config import Config, Section, TlsConfig
from collector.errors import OperatorError
from collector.lake.location import locate
from collector.receive.address import host_and_port
from collector.settings_text import expectation, shown

PREFIX = "SPANLAKE_"
FILE_VARIABLE = "SPANLAKE_CONFIG"
FLAGS = {"storage.data": "--data"}
"""Flags that are not named by their key alone."""
ADDRESSES = (("collector", "grpc"), ("collector", "http"), ("telemetry", "metrics"), ("telemetry", "health"))

Key = tuple[str, str]


@dataclass(frozen=True)
class Settings:
    """A valid configuration, and by 'section.key' where each value that is not a default came from."""

    config: Config
    origins: Mapping[str, str]


@dataclass(frozen=True)
class _Given:
    value: Any
    origin: str


@dataclass
class _Layers:
    """The values found, the last one wins, and the problems met on the way."""

    values: dict[Key, _Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def report(self, key: str, given: _Given, rest: str) -> None:
        self.problems.append(f"{key} = {shown(given.value)} ({given.origin}): {rest}")


def load(config_file: str | None, overrides: Mapping[str, Mapping[str, object]]) -> Config:
    """The effective configuration. `overrides` holds flags as {section: {key: value}}; None is "not given".

    Raises OperatorError that lists every problem: key, value, origin, what was expected and what to do.
    """
    return resolve(config_file, overrides, os.environ).config


def resolve(
    config_file: str | None, overrides: Mapping[str, Mapping[str, object]], environ: Mapping[str, str]
) -> Settings:
    """As `load`, from the given environment, and with the origins."""
    layers = _Layers()
    path = config_file or environ.get(FILE_VARIABLE)
    if path:
        _add_file(layers, path)
    _add_environment(layers, environ)
    _add_flags(layers, overrides)
    sections = {name: _build_section(layers, name, model) for name, model in _sections().items()}
    if not layers.problems:
        config = Config(**sections)
        _check_values(layers, config)
        if not layers.problems:
            origins = {f"{section}.{key}": given.origin for (section, key), given in layers.values.items()}
            return Settings(config, origins)
    count = len(layers.problems)
    title = "the configuration has a problem" if count == 1 else f"the configuration has {count} problems"
    raise OperatorError("\n  ".join([f"{title}:", *layers.problems]))


def environment_variable(section: str, key: str) -> str:
    """The variable that sets a key."""
    return f"{PREFIX}{section}_{key}".upper()


def _sections() -> dict[str, type[Section]]:
    """Name and model of each table of the file."""
    found: dict[str, type[Section]] = {}
    for name, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found[name] = info.annotation
    return found


def _keys() -> Iterator[tuple[str, str, FieldInfo]]:
    for section, model in _sections().items():
        for key, info in model.model_fields.items():
            yield section, key, info


def _did_you_mean(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "remove it"


def _add_file(layers: _Layers, path: str) -> None:
    origin = f"file {path}"
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        layers.problems.append(
            f"{origin} cannot be read: {error.strerror}; expected a TOML file; "
            f"name another by --config or {FILE_VARIABLE}"
        )
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        layers.problems.append(f"{origin} is no TOML: {error}; correct it there")
        return
    models = _sections()
    for section, table in content.items():
        if section not in models:
            hint = _did_you_mean(section, list(models))
            layers.problems.append(f"[{section}] ({origin}): unknown; expected one of {', '.join(models)}; {hint}")
        elif not isinstance(table, dict):
            layers.report(section, _Given(table, origin), f"expected a table: write [{section}] and its keys below")
        else:
            _add_table(layers, section, table, origin)


def _add_table(layers: _Layers, section: str, table: Mapping[str, object], origin: str) -> None:
    fields = _sections()[section].model_fields
    for key, value in table.items():
        if key in fields:
            frozen = tuple(value) if isinstance(value, list) else value
            layers.values[section, key] = _Given(frozen, origin)
            continue
        # The value of an unknown key is not shown: it could be a secret under a misspelt name.
        homes = [f"{s}.{k}" for s, k, _ in _keys() if k == key]
        hint = f"did you mean {homes[0]}?" if homes else _did_you_mean(key, list(fields))
        layers.problems.append(f"{section}.{key} ({origin}): unknown key; expected a key of [{section}]; {hint}")


def _add_environment(layers: _Layers, environ: Mapping[str, str]) -> None:
    known = {environment_variable(section, key): (section, key, info) for section, key, info in _keys()}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        if variable not in known:
            hint = _did_you_mean(variable, [*known, FILE_VARIABLE])
            hint = "unset it" if hint == "remove it" else hint
            layers.problems.append(f"variable {variable}: unknown; expected {PREFIX}<SECTION>_<KEY>; {hint}")
            continue
        section, key, info = known[variable]
        layers.values[section, key] = _Given(_from_text(info, environ[variable]), f"variable {variable}")


def _from_text(info: FieldInfo, text: str) -> object:
    """The value of the field's type that the text stands for, or the text itself where it stands for none."""
    if info.annotation == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if get_origin(info.annotation) is dict:
        try:
            return tomllib.loads(f"table = {text}")["table"]
        except tomllib.TOMLDecodeError:
            return text
    try:
        adapter: TypeAdapter[object] = TypeAdapter(info.annotation or object)
        return adapter.validate_strings(text.strip())
    except ValidationError:
        return text


def _add_flags(layers: _Layers, overrides: Mapping[str, Mapping[str, object]]) -> None:
    for section, values in overrides.items():
        for key, value in values.items():
            if value is not None:
                flag = FLAGS.get(f"{section}.{key}", f"--{key.replace('_', '-')}")
                _add_table(layers, section, {key: value}, f"flag {flag}")


def _build_section(layers: _Layers, name: str, model: type[Section]) -> BaseModel | None:
    values = {key: given.value for (section, key), given in layers.values.items() if section == name}
    try:
        return model.model_validate(values, strict=True)
    except ValidationError as error:
        for key in dict.fromkeys(str(problem["loc"][0]) for problem in error.errors()):
            info = model.model_fields[key]
            default = shown(info.get_default(call_default_factory=True))
            rest = f"expected {expectation(info)}; correct it, or remove it for the default {default}"
            inner = [p for p in error.errors() if p["loc"][0] == key and isinstance(p["loc"][-1], str) and p["loc"][1:]]
            for problem in inner:
                _report_inner(layers, name, problem)
            if not inner:
                layers.report(f"{name}.{key}", layers.values[name, key], rest)
        return None


def _report_inner(layers: _Layers, section: str, problem: ErrorDetails) -> None:
    """A problem within a table of tables. The value of an unknown key is not shown: it could be a secret."""
    path = ".".join([section, *map(str, problem["loc"])])
    origin = layers.values[section, str(problem["loc"][0])].origin
    if problem["type"] == "extra_forbidden":
        layers.problems.append(f"{path} ({origin}): unknown key; expected one of its table; remove it")
    else:
        said = problem["msg"].removeprefix("Value error, ")
        given = _Given(problem["input"], origin)
        layers.report(path.removesuffix(".[key]"), given, f"{said}; correct it, or remove it")


def _check_values(layers: _Layers, config: Config) -> None:
    """What no single type can say: finite numbers, addresses, a storage that exists in this release."""
    for (section, key), given in layers.values.items():
        if isinstance(given.value, float) and not math.isfinite(given.value):
            layers.report(f"{section}.{key}", given, "expected a finite number")
    _check_addresses(layers, config)
    _check_tls(layers, config.tls)
    _check_traces_endpoint(layers, config.telemetry.traces_endpoint)
    try:
        locate(config.storage)
    except OperatorError as error:
        layers.problems.append(str(error))


def _check_addresses(layers: _Layers, config: Config) -> None:
    parsed: dict[Key, tuple[str, tuple[str, int]]] = {}
    for section, key in ADDRESSES:
        text = getattr(getattr(config, section), key)
        if section == "telemetry" and not text:
            continue
        try:
            parsed[section, key] = text, host_and_port(f"{section}.{key}", text)
        except OperatorError as error:
            layers.problems.append(f"{error} ({layers.values[section, key].origin})")
    for (one, (text, address)), (other, (other_text, other_address)) in combinations(parsed.items(), 2):
        if _collide(address, other_address):
            layers.problems.append(
                f"{'.'.join(one)} = {shown(text)} and {'.'.join(other)} = {shown(other_text)}: "
                "expected two different addresses; give one of them another port"
            )


def _check_tls(layers: _Layers, tls: TlsConfig) -> None:
    if bool(tls.certificate) != bool(tls.key):
        given, missing = ("certificate", "key") if tls.certificate else ("key", "certificate")
        layers.report(f"tls.{given}", layers.values["tls", given], f"expected tls.{missing} with it; set both")
    elif tls.client_ca and not tls.certificate:
        rest = "expected tls.certificate and tls.key with it; set them"
        layers.report("tls.client_ca", layers.values["tls", "client_ca"], rest)


def _check_traces_endpoint(layers: _Layers, endpoint: str) -> None:
    try:
        url = urlsplit(endpoint)
        valid = url.scheme in ("http", "https") and bool(url.hostname)
    except ValueError:
        valid = False
    if endpoint and not valid:
        layers.report(
            "telemetry.traces_endpoint",
            layers.values["telemetry", "traces_endpoint"],
            "expected a URL such as http://127.0.0.1:4317; correct it, or remove it for no traces",
        )


def _collide(one: tuple[str, int], other: tuple[str, int]) -> bool:
    anywhere = {"0.0.0.0", "::", "*"}  # noqa: S104  compared with, not bound
    same_host = one[0] == other[0] or one[0] in anywhere or other[0] in anywhere
    return same_host and one[1] == other[1] != 0
