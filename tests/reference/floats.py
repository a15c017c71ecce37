"""What is the same of results whose sums were made in another order."""

from __future__ import annotations

from typing import Any


def rounded(value: Any) -> Any:
    """The same with floats to 9 digits, within dicts, lists and tuples too; these as lists."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
