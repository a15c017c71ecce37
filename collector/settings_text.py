"""The configuration in words: values as they may be shown, expectations, and the effective TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, SecretStr

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from collector.config import Config

_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_PARAMETER = re.compile(r"(?i)\b([a-z_-]*(?:password|secret|token|key))=[^&\s]*")
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_TYPES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple[str, ...]: "a list of texts",
}


def shown(value: object) -> str:
    """A value as TOML, never with a secret in it: SecretStr, and credentials within URLs, are masked."""
    if isinstance(value, SecretStr):
        return '"***"'
    if isinstance(value, str):
        masked = _SECRET_PARAMETER.sub(r"\1=***", _USERINFO.sub("***@", value))
        return json.dumps(masked, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return _shown_items(value) if isinstance(value, list | tuple | dict | BaseModel) else str(value)


def _shown_items(values: list[Any] | tuple[Any, ...] | dict[str, Any] | BaseModel) -> str:
    if isinstance(values, list | tuple):
        return f"[{', '.join(shown(value) for value in values)}]"
    table = values if isinstance(values, dict) else values.model_dump(exclude_none=True)
    return "{" + ", ".join(f"{shown(key)} = {shown(value)}" for key, value in table.items()) + "}"


def type_name(info: FieldInfo) -> str:
    """The type of a field in plain words."""
    if get_origin(info.annotation) is dict:
        value = get_args(info.annotation)[1]
        plain = get_args(value)[0] if get_origin(value) is Annotated else value
        return "a table of lists" if get_origin(plain) is list else "a table of tables"
    return _TYPES.get(_hashable(info.annotation), "a value")


def limits(info: FieldInfo) -> str:
    """The range of a field such as 'at least 1, at most 60'; '' where every value of its type will do."""
    words = [
        f"{words} {getattr(rule, bound)}"
        for rule in info.metadata
        for bound, words in _BOUNDS.items()
        if hasattr(rule, bound)
    ]
    return ", ".join(words)


def expectation(info: FieldInfo) -> str:
    """Type, range and meaning of a field, to stand after 'expected'."""
    text = " of ".join(part for part in (type_name(info), limits(info)) if part)
    return f"{text} ({info.description})" if info.description else text


def effective_toml(config: Config, origins: Mapping[str, str]) -> str:
    """The whole configuration as TOML; a comment names the origin of each value that is not a default."""
    lines: list[str] = []
    for section in type(config).model_fields:
        lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        table = getattr(config, section)
        for key in type(table).model_fields:
            origin = origins.get(f"{section}.{key}")
            comment = f"  # {origin}" if origin else ""
            lines.append(f"{key} = {shown(getattr(table, key))}{comment}")
    return "\n".join(lines)


def _hashable(annotation: Any) -> Any:
    try:
        hash(annotation)
    except TypeError:
        return None
    return annotation
