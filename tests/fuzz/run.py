"""Fuzzes one target, guided by coverage: run.py TARGET [options of libFuzzer] [folders of inputs].

    python tests/fuzz/run.py protobuf -max_total_time=60 build/fuzz/protobuf tests/fuzz/corpus/protobuf

New inputs go to the first folder. https://llvm.org/docs/LibFuzzer.html#options
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

with atheris.instrument_imports(include=["collector.decode", "collector.receive", "uvicorn.protocols.http"]):
    from targets import TARGETS


def main() -> None:
    """Run until a limit among the options, or until a target fails."""
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
