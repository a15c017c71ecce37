"""Names of tenants: which are valid, and which tenant a span belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable

from collector.errors import InvalidRequestError

TENANT_HEADER = "x-scope-orgid"
DEFAULT_TENANT = "default"
NAME_CHARS_MAX = 150
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.:@/+=*'!~-]*$"
"""Of a name of at most NAME_CHARS_MAX. Parentheses are left out: `(other)` and the like can be no tenant's name."""
_NAME = re.compile(NAME_PATTERN.replace("$", r"\Z"), re.ASCII)


class InvalidTenantError(InvalidRequestError):
    """The name is none that a tenant can have."""


def is_name(text: str) -> bool:
    """Whether a tenant can have this name."""
    return len(text) <= NAME_CHARS_MAX and _NAME.match(text) is not None


def checked_name(name: str) -> str:
    """The argument itself. Raises InvalidTenantError."""
    if not is_name(name):
        told = name if len(name) <= NAME_CHARS_MAX else name[:NAME_CHARS_MAX] + "…"
        raise InvalidTenantError(
            f"{told!r} is no name of a tenant: expected 1 to {NAME_CHARS_MAX} letters, digits and _ . : @ / + = * ' ! "
            "~ - of ASCII, a letter, digit or _ at first"
        )
    return name


def tenant_named(values: Iterable[str | bytes]) -> str | None:
    """The tenant that the values of X-Scope-OrgID name; None without a value or with an empty one.

    Raises InvalidRequestError where they disagree, InvalidTenantError where the name is not valid.
    """
    distinct = set(values)
    if not distinct:
        return None
    if len(distinct) > 1:
        raise InvalidRequestError("X-Scope-OrgID names several tenants: send the header once a request")
    value = distinct.pop()
    try:
        name = (value.decode() if isinstance(value, bytes) else value).strip()
    except UnicodeDecodeError as error:
        raise InvalidTenantError(f"X-Scope-OrgID = {value!r}: expected text in ASCII") from error
    if not name:
        return None
    try:
        return checked_name(name)
    except InvalidTenantError as error:
        raise InvalidTenantError(f"X-Scope-OrgID: {error}") from error
