"""Runs a command that ends with the process that started it: `python child.py PARENT_PID COMMAND...`.

Without it, a killed parent would leave servers behind that hold their data folder. Linux only; elsewhere the
command runs all the same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


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
