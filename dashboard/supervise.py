"""Child processes that live and end together.

Each is in a process group of its own: Ctrl-C in a terminal reaches the supervisor alone, which then stops them
one after the other, in the order that keeps every span.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from collector.child import bound_to_this_process
from collector.errors import OperatorError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Starts children, waits for a signal or a death, stops children. Use it in the main thread, as a context.

    The first SIGINT, SIGTERM or SIGHUP asks for a stop; a second one kills what still runs.
    """

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._changed = threading.Event()
        self._signals = 0
        self._killed: list[str] = []

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked for a stop."""
        return self._signals > 0

    @contextmanager
    def running(self) -> Iterator[Supervisor]:
        """Take over the signals; at the end, kill children that were not stopped."""
        before = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS}
        try:
            yield self
        finally:
            for process in self._children.values():
                if process.poll() is None:
                    process.kill()
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        announces: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a child. Its standard error is shared; its standard output is dropped unless it `announces`."""
        stdout = subprocess.PIPE if announces else subprocess.DEVNULL
        bound = bound_to_this_process(command)
        process = subprocess.Popen(bound, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, process_group=0)
        self._children[name] = process
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        return process

    def has(self, name: str) -> bool:
        """Whether a child of this name was started and not yet stopped."""
        return name in self._children

    def wait(self) -> None:
        """Return once a signal asks for a stop. Raises OperatorError where a child ends before that."""
        while not self.stopping:
            self.check()
            self._changed.wait()
            self._changed.clear()

    def check(self) -> None:
        """Raises OperatorError where a child has ended."""
        for name, process in self._children.items():
            code = process.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise OperatorError(f"the {name} {how}: expected it to run on; its messages stand above")

    def first_line(self, name: str, timeout_seconds: float) -> bytes | None:
        """The first line of a child that announces; None where a stop is asked for first. Raises OperatorError."""
        lines: list[bytes] = []
        process = self._children[name]
        threading.Thread(target=self._read, args=(process, lines), daemon=True).start()
        deadline = time.monotonic() + timeout_seconds
        while not lines and not self.stopping:
            self.check()
            if time.monotonic() > deadline:
                raise OperatorError(f"the {name} was not ready within {timeout_seconds:g} s")
            self._changed.wait(0.5)
            self._changed.clear()
        return lines[0] if lines else None

    def stop(self, name: str, timeout_seconds: float) -> None:
        """Send SIGTERM to a child and wait for its end; kill it when the time is over, or at a second signal."""
        process = self._children[name]
        if process.poll() is None:
            process.terminate()
        self.await_end(name, timeout_seconds)

    def await_end(self, name: str, timeout_seconds: float) -> None:
        """Wait for the end of a child, kill it when the time is over, or at a second signal."""
        process = self._children.pop(name)
        deadline = time.monotonic() + timeout_seconds
        while process.poll() is None:
            if self._signals > 1 or time.monotonic() > deadline:
                self._killed.append(name)
                process.kill()
                process.wait()
            self._changed.wait(0.5)
            self._changed.clear()

    @property
    def killed(self) -> tuple[str, ...]:
        """Children that did not stop in time."""
        return tuple(self._killed)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self._changed.set()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._changed.set()

    def _read(self, process: subprocess.Popen[bytes], lines: list[bytes]) -> None:
        if process.stdout is None:
            return
        for line in process.stdout:
            if not lines:
                lines.append(line)
                self._changed.set()
