"""What changed between two runs of `benchmarks.suite`: `python -m benchmarks.compare A.json B.json`.

Figures that have a baseline in their run are compared in proportion to it, the others as they are. A change is told as
better or worse where it is beyond the noise: what the runs of a figure differed by, at least 15 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.report import Row, changes, changes_table, from_json


def read(path: Path) -> tuple[dict[str, object], list[Row]]:
    """What a run says about itself, and its rows. Exits where the file is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document["about"], from_json(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path}: {error}: expected the JSON of a run, as `make bench` writes it")


def main() -> None:
    """Print the changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    (about_a, a), (about_b, b) = read(options.before), read(options.after)
    for key in sorted(about_a.keys() | about_b.keys()):
        if about_a.get(key) != about_b.get(key):
            print(f"{key}: {about_a.get(key)} -> {about_b.get(key)}")
    names_a, names_b = [row.name for row in a], [row.name for row in b]
    only = {
        str(options.before): [name for name in names_a if name not in names_b],
        str(options.after): [name for name in names_b if name not in names_a],
    }
    print(changes_table(changes(a, b), only))


if __name__ == "__main__":
    main()
