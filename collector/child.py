"""Runs a command that ends with the process that started it: `python child.py PARENT_PID COMMAND...`.

Without it, a killed parent would leave servers behind that hold their data folder. Linux only; elsewhere the
command runs all the same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def bound_to_this_process(command: Sequence[str]) -> list[str]:
    """A command that runs `command` until it ends or this process does."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    """Ask the kernel for SIGTERM at the parent's death, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  the supervisor's own command


if __name__ == "__main__":
    main()
