"""Which data files are to be merged into one next: files rise through tiers of size, as in a log-structured merge tree.

TIER_FILES of a tier become one file, of the next tier as a rule, so a row is rewritten about once a tier. What leaves
the highest tier is settled and stays as it is: a file of SETTLED_BYTES, if its rows took SETTLED_SECONDS to come. Where
they came faster, so that an hour would have too many such files, it is merged on until it has FULL_BYTES; what makes
such a file does not wait for TIER_FILES. Files of the highest tier are merged with those of their day only, so that
retention removes a file at most a day later than its oldest row is due; a day that is over leaves one remainder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

MERGED_BYTES_MAX = 2**30
FULL_BYTES = MERGED_BYTES_MAX * 3 // 4
SETTLED_BYTES = 2**27
SETTLED_SECONDS = 120
"""30 such files an hour."""
TIER_BYTES: tuple[tuple[int, int], ...] = ((0, 2**17), (2**17, 2**20), (2**20, 2**23), (2**23, FULL_BYTES))
TIER_FILES = 8
SMALL_MERGED_BYTES_MAX = 2**28
"""Of files below the highest tier, which may have to be sorted anew: the next ones do not wait long."""
MERGED_FILES_MAX = 256


@dataclass(frozen=True)
class File:
    """A live data file as the catalog has it.

    Its rows were inserted by the snapshots from `begin_snapshot` to `last_snapshot`, and were received within
    `seconds`; `day` is the UTC date of the newest of them. Where nobody knows, these are 0 and ''. `path` is relative
    to the table's folder where `is_relative`.
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
    seconds: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether it is merged no more."""
        return self.size_bytes >= (SETTLED_BYTES if self.seconds >= SETTLED_SECONDS else FULL_BYTES)


def due(files: Sequence[File]) -> list[list[File]]:
    """Each list is to become one file; the lowest tier comes first. Pure; `files` are in the order of their rows."""
    newest_day = max((file.day for file in files), default="")
    unsettled = [file for file in files if not file.is_settled]
    small = [
        part
        for bytes_min, bytes_max in TIER_BYTES[:-1]
        for part, is_cut in _parts(
            [file for file in unsettled if bytes_min <= file.size_bytes < bytes_max], SMALL_MERGED_BYTES_MAX
        )
        if len(part) >= (2 if is_cut else TIER_FILES)
    ]
    return small + list(_due_large([file for file in unsettled if file.size_bytes >= TIER_BYTES[-1][0]], newest_day))


def _due_large(files: Sequence[File], newest_day: str) -> Iterator[list[File]]:
    for day, group in groupby(sorted(files, key=lambda file: file.day), key=lambda file: file.day):
        for part, is_cut in _parts(list(group), MERGED_BYTES_MAX):
            is_full = is_cut or day < newest_day or _bytes(part) >= FULL_BYTES
            if len(part) >= (2 if is_full else TIER_FILES):
                yield part


def _parts(files: Sequence[File], bytes_max: int) -> Iterator[tuple[list[File], bool]]:
    """`files` in parts of a merged file each, and whether a part was cut as the next file does not fit in."""
    part: list[File] = []
    for file in files:
        if part and (_bytes(part) + file.size_bytes > bytes_max or len(part) >= MERGED_FILES_MAX):
            yield part, True
            part = []
        part.append(file)
    if part:
        yield part, False


def _bytes(files: Sequence[File]) -> int:
    return sum(file.size_bytes for file in files)
