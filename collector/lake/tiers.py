"""Which data files are to be merged into one next: files rise through tiers of size, as in a log-structured merge tree.

TIER_FILES of a tier become one file, of the next tier as a rule, so a row is rewritten about once a tier; what fills a
file of nearly MERGED_BYTES_MAX does not wait for so many. What has left the highest tier stays as it is. Files of that
tier are merged with those of their day only, so that retention removes a file at most a day later than its oldest row
is due; a day that is over leaves one remainder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

TIER_BYTES: tuple[tuple[int, int], ...] = ((0, 2**17), (2**17, 2**20), (2**20, 2**23), (2**23, 2**27))
TIER_FILES = 8
MERGED_BYTES_MAX = 2**28
FULL_BYTES = MERGED_BYTES_MAX * 3 // 4
MERGED_FILES_MAX = 256


@dataclass(frozen=True)
class File:
    """A live data file as the catalog has it.

    Its rows were inserted by the snapshots from `begin_snapshot` to `last_snapshot`; `day` is the UTC date of the
    newest of them, '' where nobody knows. `path` is relative to the table's folder where `is_relative`.
    """

    data_file_id: int
    path: str
    is_relative: bool
    rows: int
    size_bytes: int
    begin_snapshot: int
    last_snapshot: int
    row_id_start: int | None
    day: str


def due(files: Sequence[File]) -> list[list[File]]:
    """Each list is to become one file; the lowest tier comes first. Pure; `files` are in the order of their rows."""
    newest_day = max((file.day for file in files), default="")
    return [
        part
        for bytes_min, bytes_max in TIER_BYTES
        for group, is_over in _groups(files, bytes_min, bytes_max, newest_day)
        for part, is_cut in _parts(group)
        if len(part) >= (2 if is_over or is_cut or _bytes(part) >= FULL_BYTES else TIER_FILES)
    ]


def _groups(
    files: Sequence[File], bytes_min: int, bytes_max: int, newest_day: str
) -> Iterator[tuple[list[File], bool]]:
    """The files of a tier that may share one, and whether no more will join them."""
    tier = [file for file in files if bytes_min <= file.size_bytes < bytes_max]
    if bytes_max < TIER_BYTES[-1][1]:
        yield tier, False
        return
    for day, group in groupby(sorted(tier, key=lambda file: file.day), key=lambda file: file.day):
        yield list(group), day < newest_day


def _parts(files: Sequence[File]) -> Iterator[tuple[list[File], bool]]:
    """`files` in parts of a merged file each, and whether a part was cut as the next file does not fit in."""
    part: list[File] = []
    for file in files:
        if part and (_bytes(part) + file.size_bytes > MERGED_BYTES_MAX or len(part) >= MERGED_FILES_MAX):
            yield part, True
            part = []
        part.append(file)
    if part:
        yield part, False


def _bytes(files: Sequence[File]) -> int:
    return sum(file.size_bytes for file in files)
