"""The workloads in C (``storm.c``, ``calls.c``) as processes: compiled here, run in segments, ended by pid."""

from __future__ import annotations

import contextlib
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tailspan.errors import CannotError

COMPILERS = ("clang", "clang-14", "clang-15", "clang-16", "clang-19", "cc")

#: How often the agent drains its rings, by default.
TICK_S = 0.015


@dataclass(frozen=True, slots=True)
class Segment:
    count: int  #: of what the workload does: a storm's round trips
    seconds: float

    @property
    def per_s(self) -> float:
        return self.count / self.seconds


class Storm:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self._stdin, self._stdout = process.stdin, process.stdout

    def run(self, seconds: float, tick: Callable[[], object] | None = None, per_s: int = 0) -> Segment:
        """Work for so long; meanwhile, and once more when it is over, call ``tick`` on the agent's timer.

        ``per_s``: a storm's round trips a second of each pair; 0: as many as there can be.
        """
        print(round(seconds * 1000), *([per_s] if per_s else ()), file=self._stdin, flush=True)
        while tick and not select.select([self._stdout], [], [], 0)[0]:
            time.sleep(TICK_S)
            tick()
        count, took_ns = map(int, self._stdout.readline().split())
        if tick:
            tick()
        return Segment(count, took_ns / 1e9)


@contextlib.contextmanager
def storm(binary: Path, *arguments: object) -> Iterator[Storm]:
    """``binary``: as :func:`build` made it. Its threads are all there, asleep, when this gives it."""
    command = [str(binary), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise CannotError(f"{binary.name} {' '.join(command[1:])} did not get ready")
            yield Storm(process)
        finally:
            process.kill()


def build(folder: Path, name: str = "storm") -> Path:
    """Compile ``NAME.c`` of this folder."""
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if compiler is None:
        raise CannotError("the benchmark needs a C compiler: make deps")
    binary = folder / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, "-O2", "-Wall", "-pthread", source, "-o", binary], check=True)
    return binary
