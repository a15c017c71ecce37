"""The secret of a lake by which keys of caches are hashed before they are stored."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from collector.errors import OperatorError
from collector.lake.location import Location

FILE = "key-hash.secret"
SECRET_BYTES = 32


def secret_of(location: Location) -> bytes:
    """The lake's secret of SECRET_BYTES, made at first use, in a file that only its owner may read.

    Raises OperatorError where the file holds something else, OSError where it cannot be read or made.
    """
    path = location.root / FILE
    if not path.exists():
        _make(path)
    found = path.read_bytes()
    if len(found) != SECRET_BYTES:
        raise OperatorError(
            f"{path} has {len(found)} bytes: expected the {SECRET_BYTES} that hash keys in this lake; restore the "
            "file, or remove it for a new secret (keys stored before then have other hashes)"
        )
    return found


def _make(path: Path) -> None:
    """Write a new secret under its name at once and whole, unless another process was faster."""
    temporary = path.with_suffix(f".{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
