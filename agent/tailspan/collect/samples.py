"""Facts of the host that nobody sends: looked at from time to time, in files of the kernel that stay open."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailspan.timeline.tables import CPU_SAMPLE

Table = npt.NDArray[np.void]

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
#: Columns of a CPU's line in /proc/stat behind its number (proc(5)). user and nice include guests.
_BUSY = [1, 2, 3, 6, 7]  # user, nice, system, irq, softirq
_STEAL = 8

_FREQUENCIES_EVERY_NS = 1_000_000_000
#: Reading a frequency may take the kernel 10 to 20 ms (x86 before 5.18 measures it for so long), a CPU: what does
#: not fit into a take is left to the next ones.
_FREQUENCY_BUDGET_NS = 1_000_000
#: A CPU at this share of its highest frequency, or above, is not slow enough to say so.
_FULL_SPEED = 0.9


class _File:
    """A file of the kernel, opened once and read again from its start. One that is not there reads as empty."""

    def __init__(self, path: Path) -> None:
        self._bytes = 1 << 12
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def read(self) -> bytes:
        """All of it in one piece: a second piece would be of another moment. Empty when it cannot be read."""
        while self._fd >= 0:
            try:
                text = os.pread(self._fd, self._bytes, 0)
            except OSError:
                break
            if len(text) < self._bytes:
                return text
            self._bytes *= 2
        return b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class CpuSampler:
    """Hypervisor steal and frequency of each CPU. Costs a read of /proc/stat a take.

    The kernel exports steal in ticks (10 ms): a row may hold up to a tick more or less than was stolen in its
    time.
    """

    def __init__(self, stat: Path = Path("/proc/stat"), cpus: Path = Path("/sys/devices/system/cpu")) -> None:
        self._stat = _File(stat)
        self._frequencies = _Frequencies(cpus)
        self._taken_mono_ns = 0
        self._before = np.empty((0, 0), np.int64)

    def take(self, now_mono_ns: int) -> Table:
        """CPU_SAMPLE rows for the time since the last take, of those CPUs that lost time to the hypervisor or ran
        below 90 % of their highest frequency. A CPU that was not there at the last take has no row.
        """
        since, self._taken_mono_ns = self._taken_mono_ns, now_mono_ns
        before, now = self._before, _ticks(self._stat.read())
        self._before = now
        if not now.size:
            return np.empty(0, CPU_SAMPLE)
        if not np.array_equal(before[:, :1], now[:, :1]):  # the first take, or CPUs have come or gone
            self._frequencies.follow(now[:, 0].tolist())
            before, now = _both(before, now)
        self._frequencies.read(now_mono_ns)
        cpus = now[:, 0]
        grown = np.maximum(now - before, 0)
        steal = grown[:, _STEAL]
        khz, max_khz = self._frequencies.khz[cpus], self._frequencies.max_khz[cpus]
        telling = np.flatnonzero((steal > 0) | ((khz > 0) & (khz < _FULL_SPEED * max_khz)))
        rows = np.zeros(len(telling), CPU_SAMPLE)
        rows["start_mono_ns"] = since
        rows["end_mono_ns"] = now_mono_ns
        rows["busy_ns"] = grown[telling][:, _BUSY].sum(axis=1) * _TICK_NS
        rows["steal_ns"] = steal[telling] * _TICK_NS
        rows["cpu"] = cpus[telling]
        rows["khz"] = khz[telling]
        rows["max_khz"] = max_khz[telling]
        return rows

    def close(self) -> None:
        self._stat.close()
        self._frequencies.close()


def _ticks(stat: bytes) -> npt.NDArray[np.int64]:
    """A row per CPU that is on: its number, then its counters. Empty where the text is not the kernel's."""
    first, last = stat.find(b"\ncpu"), stat.rfind(b"\ncpu")
    lines = stat[first + 1 : stat.find(b"\n", last + 1)]
    width = len(lines.partition(b"\n")[0].split())
    if first < 0 or width <= _STEAL:
        return np.empty((0, 0), np.int64)
    try:
        return np.array([int(word) for word in lines.replace(b"cpu", b"").split()], np.int64).reshape(-1, width)
    except (ValueError, OverflowError):
        return np.empty((0, 0), np.int64)


def _both(
    before: npt.NDArray[np.int64], now: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows of those CPUs that are in both."""
    if not before.size:
        return now[:0], now[:0]
    _, old, new = np.intersect1d(before[:, 0], now[:, 0], assume_unique=True, return_indices=True)
    return before[old], now[new]


class _Frequencies:
    """``khz`` and ``max_khz`` by CPU number; 0 where cpufreq does not say. ``khz`` is up to a second old."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, _File] = {}
        self._due: list[int] = []
        self._begun_mono_ns = -_FREQUENCIES_EVERY_NS
        self.khz = np.zeros(0, np.uint32)
        self.max_khz = np.zeros(0, np.uint32)

    def follow(self, cpus: list[int]) -> None:
        """Exactly these CPUs are on."""
        room = max(cpus) + 1 - len(self.khz)
        if room > 0:
            self.khz, self.max_khz = np.pad(self.khz, (0, room)), np.pad(self.max_khz, (0, room))
        for cpu in self._files.keys() - cpus:
            self._drop(cpu)
        for cpu in cpus:
            if cpu not in self._files:
                self._open(cpu)
        self._due = [cpu for cpu in self._due if cpu in self._files]

    def read(self, now_mono_ns: int) -> None:
        """Those that are due, as far as the budget goes; each once in a round, a round a second."""
        if not self._due and now_mono_ns - self._begun_mono_ns >= _FREQUENCIES_EVERY_NS:
            self._begun_mono_ns = now_mono_ns
            self._due = list(self._files)
        until = time.monotonic_ns() + _FREQUENCY_BUDGET_NS
        while self._due:
            cpu = self._due.pop()
            self.khz[cpu] = khz = _khz(self._files[cpu])
            if not khz:  # its CPU was off meanwhile, and this may be the file of the time before
                self._drop(cpu)
                self._open(cpu)
            if time.monotonic_ns() >= until:
                break

    def close(self) -> None:
        for cpu in list(self._files):
            self._drop(cpu)
        self._due.clear()

    def _open(self, cpu: int) -> None:
        folder = self._folder / f"cpu{cpu}" / "cpufreq"
        highest = _File(folder / "cpuinfo_max_freq")
        self.max_khz[cpu] = max_khz = _khz(highest)
        highest.close()
        if max_khz:
            self._files[cpu] = _File(folder / "scaling_cur_freq")

    def _drop(self, cpu: int) -> None:
        self._files.pop(cpu).close()
        self.khz[cpu] = self.max_khz[cpu] = 0


def _khz(file: _File) -> int:
    """0 for a file that is not there, cannot be read, or says ``<unknown>``."""
    text = file.read().strip()
    return int(text) if text.isdigit() else 0


class NetTotals:
    """TCP's totals in the agent's network namespace: the host's, unless the agent has one of its own."""

    def __init__(self, folder: Path = Path("/proc/net")) -> None:
        self._tables = [_File(folder / name) for name in ("snmp", "netstat")]
        self._pairs = [_File(folder / name) for name in ("sockstat", "sockstat6")]

    def read(self) -> dict[str, int]:
        """``line:field`` in the kernel's own words -> value: ``Tcp:RetransSegs``, ``TcpExt:TCPTimeouts``,
        ``TCP:tw``. What this kernel does not say is absent.
        """
        totals: dict[str, int] = {}
        for file in self._tables:  # a line of names and then one of values
            lines = file.read().splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=False):
                _add(totals, names.split(), values.split())
        for file in self._pairs:  # names and values by turns
            for line in file.read().splitlines():
                words = line.split()
                _add(totals, words[:1] + words[1::2], words[:1] + words[2::2])
        return totals

    def close(self) -> None:
        for file in (*self._tables, *self._pairs):
            file.close()


def _add(totals: dict[str, int], names: list[bytes], values: list[bytes]) -> None:
    if not names or names[:1] != values[:1] or names[0] not in (b"Tcp:", b"TcpExt:", b"TCP:", b"TCP6:"):
        return
    line = names[0].decode()
    for name, value in zip(names[1:], values[1:], strict=False):
        if value.isdigit():
            totals[line + name.decode()] = int(value)
