"""Refusals that concern who sends. The table of statuses is `collector/receive/status.py`."""

from __future__ import annotations

from collector.errors import OverloadedError, PermanentError


class UnauthenticatedError(PermanentError):
    """The request has no token, or one that is not valid."""


class PermissionDeniedError(PermanentError):
    """The token is of another tenant than the request names."""


class QuotaExceededError(OverloadedError):
    """The tenant sent more than its quota; `retry_after_seconds` says when there is room again."""
