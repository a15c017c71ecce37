"""Opening a spool whatever has become of its files: what is whole is kept, what is not is named and counted.

A spool that SQLite cannot read, or would silently read only in part, is rebuilt from its pages (see `carve`). The
damaged files stay beside it as `spool.sqlite.damaged-TIME`. A crash in the middle of it is harmless: the rebuilt
file is made under another name, and takes the place of the damaged one in one rename.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from pathlib import Path

from collector.carve import Carver
from collector.spool import FILE_NAME, Spool, digest_of
from collector.wal import is_cut_short, missing_frames

log = logging.getLogger(__name__)

# The last one is what SQLite says of a flipped bit in the head of a file that can be written.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY}
_SUFFIXES = ("", "-wal", "-shm")


def open_spool(folder: Path, dedup_window_seconds: float, spool_id: str | None, sealed_upto: int) -> Spool:
    """The spool of `folder`, created where there is none, rebuilt where it is damaged.

    `spool_id` is the name under which the lake knows it, None where it knows none; `sealed_upto` the last request
    that the lake has. Both matter only for rebuilding. Raises sqlite3.Error and OSError where the disk refuses.
    """
    _finish_rebuilding(folder)
    wal, index = (_content(folder / f"{FILE_NAME}{suffix}") for suffix in ("-wal", "-shm"))
    if lost := missing_frames(wal, index):
        log.error("the spool's write-ahead log was cut: the requests of its last %d pages are lost", lost)
    damage = "its write-ahead log has a damaged frame before a whole one" if is_cut_short(wal) else None
    if damage is None:
        try:
            spool = Spool(folder, dedup_window_seconds)
            damage = spool.damage()
            if damage is None:
                return spool
            spool.close()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _DAMAGE or not os.access(folder / FILE_NAME, os.W_OK):
                raise
            damage = str(error)
    log.error("the spool in %s is damaged (%s): it is rebuilt from what is whole", folder, damage)
    _rebuild(folder, dedup_window_seconds, spool_id, sealed_upto)
    _finish_rebuilding(folder)
    return Spool(folder, dedup_window_seconds)


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _rebuild(folder: Path, dedup_window_seconds: float, spool_id: str | None, sealed_upto: int) -> None:
    """Make the folder `rebuilt`, complete as soon as it has that name."""
    carver = Carver(*(_content(folder / f"{FILE_NAME}{suffix}") for suffix in ("", "-wal")))
    rows = [row for seq, row in sorted(carver.requests().items()) if seq > sealed_upto]
    answers = [(found.digest, found.rejected_spans, found.message) for found in carver.digests().values()]
    answers += [(digest_of(row.request), 0, "") for row in rows]
    unfinished = folder / "rebuilding"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    spool = Spool(unfinished, dedup_window_seconds)
    spool.restore(spool_id, rows, answers)
    spool.close()
    unfinished.rename(folder / "rebuilt")
    _sync(folder)
    upto = f", numbers {rows[0].seq} to {rows[-1].seq}" if rows else ""
    log.warning(
        "%d requests that are not in the lake yet were found whole%s; whether later ones were lost cannot be known",
        len(rows),
        upto,
    )


def _finish_rebuilding(folder: Path) -> None:
    """Put the damaged files aside and the rebuilt one in their place, where that is under way."""
    rebuilt = folder / "rebuilt"
    if not rebuilt.exists():
        return
    source = rebuilt / FILE_NAME
    if source.exists():
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for suffix in reversed(_SUFFIXES):
            damaged = folder / f"{FILE_NAME}{suffix}"
            if damaged.exists():
                damaged.rename(folder / f"{FILE_NAME}.damaged-{stamp}{suffix}")
        _sync(folder)
        source.rename(folder / FILE_NAME)
        _sync(folder)
    shutil.rmtree(rebuilt)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
