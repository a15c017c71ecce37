"""Where a lake lives: the storage URLs of the configuration, resolved to places."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from collector.config import StorageConfig
from collector.errors import OperatorError

PROBE_BYTES = 2**20
"""What must fit on the disk for a start: catalog and spool of a new lake take about half of it."""


@dataclass(frozen=True)
class Location:
    """An embedded lake: one folder with the SQLite catalog, data files, spool, locks and marks of imports."""

    root: Path

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.sqlite"

    @property
    def files(self) -> Path:
        return self.root / "lake"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def import_marks(self) -> Path:
        return self.root / "imports.sqlite"

    @property
    def collector_lock(self) -> Path:
        return self.root / "collector.lock"

    @property
    def commit_lock(self) -> Path:
        return self.root / "commit.lock"

    @property
    def jobs_lock(self) -> Path:
        return self.root / "jobs.lock"

    @property
    def announcement(self) -> Path:
        """Where the running collector says its endpoints, as JSON."""
        return self.root / "collector.json"

    def exists(self) -> bool:
        return self.catalog.exists()

    def require(self) -> None:
        """Raise OperatorError unless a lake is here."""
        if not self.exists():
            raise OperatorError(
                f"no lake at storage.data = {str(self.root)!r}: expected a folder that a collector has written "
                "(it holds catalog.sqlite); start `spanlake up` or `spanlake collect` with it, or give another --data"
            )

    def prepare(self) -> None:
        """Create the folders and prove that they can be written. Raises OperatorError."""
        try:
            for folder in (self.root, self.files, self.spool):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(bytes(PROBE_BYTES))
                    probe.flush()
                    os.fsync(probe.fileno())
        except OSError as error:
            raise OperatorError(
                f"storage.data = {str(self.root)!r} cannot be written: {error.strerror} ({error.filename or folder}); "
                "expected a folder that this user may write, with free space"
            ) from error


def locate(storage: StorageConfig) -> Location:
    """Resolve the storage URLs. Raises OperatorError for a scheme that this release does not store to."""
    if storage.catalog and not storage.catalog.startswith("sqlite:"):
        raise OperatorError(
            f"storage.catalog = {_without_secrets(storage.catalog)!r}: expected '' (SQLite in the data folder); "
            "this release keeps its catalog there"
        )
    url = urlparse(storage.data)
    if url.scheme == "file":
        return Location(Path(unquote(url.path)).absolute())
    if url.scheme and len(url.scheme) > 1:
        raise OperatorError(
            f"storage.data = {_without_secrets(storage.data)!r}: expected a folder or a file:// URL; "
            f"this release does not store to {url.scheme}://"
        )
    return Location(Path(storage.data).absolute())


def _without_secrets(url: str) -> str:
    parts = urlparse(url)
    return parts._replace(netloc=parts.hostname or "", query="").geturl() if parts.netloc else url
