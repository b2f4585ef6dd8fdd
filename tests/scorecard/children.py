"""Processes of the scorecard: each is told things by lines on its standard input, and ends with its context."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tailspan.errors import CannotError

#: Whatever becomes of the scorecard, nothing that it started stays behind.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Child:
    """Once made, it has said its first line, :attr:`said`."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [*DIES_WITH_US, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.pid = self.process.pid
        self._log = log
        try:
            self.said = self._line()
        except BaseException:
            self.end()
            raise

    def tell(self, line: str) -> None:
        """Returns when it has been done."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise CannotError(f"{self.process.args!r} has ended: {self._log.read_text()[-2000:]}")
        return line

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def python(
    source: str,
    *arguments: object,
    cpu: int,
    log: Path,
    prefix: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[int]:
    """A Python program that prints a line when it has begun; gives its pid."""
    command = [*prefix, "taskset", "-c", str(cpu), sys.executable, "-c", source, *map(str, arguments)]
    child = Child(command, log, {**os.environ, **(environment or {})})
    try:
        yield child.pid
    finally:
        child.end()


@contextlib.contextmanager
def hog(cpu: int, threads: int, log: Path) -> Iterator[int]:
    """A process that computes on ``cpu`` all the time; gives its pid."""
    command = ["taskset", "-c", str(cpu), sys.executable, "-m", "tailspan.worker.neighbour"]
    child = Child([*command, "--threads", str(threads), "--seconds", "3600", "--name", "hog"], log)
    try:
        yield child.pid
    finally:
        child.end()
