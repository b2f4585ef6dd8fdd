"""Made-up files of the kernel where a number has to be exact, the kernel's own where the number must be true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tailspan.collect import samples
from tailspan.collect.samples import CpuSampler, NetTotals

S = 1_000_000_000
TICK_NS = S // os.sysconf("SC_CLK_TCK")


class Host:
    """A folder that looks like /proc and /sys/devices/system/cpu."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stat = folder / "stat"

    def ticks(self, cpus: Mapping[int, tuple[int, int]]) -> None:
        """CPU -> (busy, stolen) ticks since boot; the busy ones of each kind."""
        lines = ["cpu  1 2 3 4 5 6 7 8 9 10"]
        for cpu, (busy, stolen) in cpus.items():
            lines.append(f"cpu{cpu} {busy - 23} 11 5 {7 * busy} 13 3 4 {stolen} 17 19")
        self.stat.write_text("\n".join([*lines, "intr 8561319 0 0 9", "ctxt 1096832575", ""]))

    def frequency(self, cpu: int, khz: object, max_khz: int = 3_000_000) -> None:
        folder = self.folder / f"cpu{cpu}" / "cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
        (folder / "cpuinfo_max_freq").write_text(f"{max_khz}\n")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def sampler(host: Host) -> Iterator[CpuSampler]:
    host.ticks({0: (100, 0), 1: (100, 0)})
    opened = CpuSampler(host.stat, host.folder)
    yield opened
    opened.close()


def rows_of(sampler: CpuSampler, now_ns: int) -> list[tuple[int, ...]]:
    """(CPU, busy ticks, stolen ticks, kHz) of the rows of one take."""
    return [
        (int(row["cpu"]), int(row["busy_ns"]) // TICK_NS, int(row["steal_ns"]) // TICK_NS, int(row["khz"]))
        for row in sampler.take(now_ns)
    ]


def test_steal_is_that_of_the_time_since_the_last_take(host: Host, sampler: CpuSampler) -> None:
    # GIVEN a first take, of which nothing is known yet
    assert len(sampler.take(1 * S)) == 0

    # WHEN one of two CPUs was stolen for 7 ticks
    host.ticks({0: (123, 7), 1: (131, 0)})
    (row,) = sampler.take(2 * S)

    # THEN it alone has a row
    assert (row["cpu"], row["start_mono_ns"], row["end_mono_ns"]) == (0, 1 * S, 2 * S)
    assert (row["busy_ns"], row["steal_ns"]) == (23 * TICK_NS, 7 * TICK_NS)
    assert (row["khz"], row["max_khz"]) == (0, 0)
    # AND nothing is told twice
    assert len(sampler.take(3 * S)) == 0


def test_a_counter_that_goes_back_is_0_and_counts_from_there(host: Host, sampler: CpuSampler) -> None:
    host.frequency(0, 1_200_000)  # so that it has a row in any case
    host.ticks({0: (100, 50), 1: (100, 50)})
    sampler.take(1 * S)
    host.ticks({0: (101, 47), 1: (90, 53)})
    assert rows_of(sampler, 2 * S) == [(0, 1, 0, 1_200_000), (1, 0, 3, 0)]
    host.ticks({0: (103, 52), 1: (97, 54)})
    assert rows_of(sampler, 3 * S) == [(0, 2, 5, 1_200_000), (1, 7, 1, 0)]


def test_only_a_cpu_below_nine_tenths_of_its_frequency_says_so(host: Host, sampler: CpuSampler) -> None:
    host.ticks(dict.fromkeys(range(5), (100, 0)))
    for cpu, khz in enumerate((2_699_999, 2_700_000, 3_000_000, "<unknown>")):  # the fifth has no cpufreq
        host.frequency(cpu, khz)
    sampler.take(1 * S)

    host.ticks(dict.fromkeys(range(5), (123, 0)))
    (row,) = sampler.take(2 * S)

    assert (row["cpu"], row["khz"], row["max_khz"]) == (0, 2_699_999, 3_000_000)
    assert (row["busy_ns"], row["steal_ns"]) == (23 * TICK_NS, 0)


def test_a_frequency_is_read_once_a_second(host: Host, sampler: CpuSampler) -> None:
    host.frequency(1, 1_200_000)
    sampler.take(1 * S)
    host.frequency(1, 1_300_000)
    assert rows_of(sampler, 1 * S + 999_999_999) == [(1, 0, 0, 1_200_000)]
    assert rows_of(sampler, 2 * S) == [(1, 0, 0, 1_300_000)]


def test_slow_frequency_files_are_left_to_the_next_takes(
    host: Host, sampler: CpuSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN that each read takes all the time there is
    monkeypatch.setattr(samples, "_FREQUENCY_BUDGET_NS", 0)
    host.ticks(dict.fromkeys(range(7), (100, 0)))
    for cpu in range(7):
        host.frequency(cpu, 1_200_000)

    # THEN every take reads one more, until all are known
    known = [len(sampler.take(1 * S + takes)) for takes in range(9)]
    assert known == [0, 2, 3, 4, 5, 6, 7, 7, 7]


def test_cpus_come_and_go(host: Host, sampler: CpuSampler) -> None:
    host.frequency(1, 1_200_000)
    host.ticks({0: (100, 0), 1: (100, 30)})
    sampler.take(1 * S)

    # WHEN CPU 1 goes off, what it would have said is not known
    host.ticks({0: (111, 2)})
    assert rows_of(sampler, 2 * S) == [(0, 11, 2, 0)]
    # AND when it is back, with counters of its own and another file, it begins anew; so does a new one
    shutil.rmtree(host.folder / "cpu1")
    host.frequency(1, 1_500_000)
    host.ticks({0: (111, 2), 1: (200, 90), 5: (300, 40)})
    assert rows_of(sampler, 3 * S) == []
    host.ticks({0: (111, 2), 1: (207, 93), 5: (300, 47)})
    assert rows_of(sampler, 4 * S) == [(1, 7, 3, 1_500_000), (5, 0, 7, 0)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu  1 2 3\n",
        "cpu  1 2\ncpu0 1 2\ncpu1 1 2\nintr 1\n",
        "cpu  1\ncpu0 1 2 3 4 5 6 7 x 9 10\nintr 1\n",
        "cpu  1\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu1 1 2 3 4 5 6\nintr 1\n",
        "cpu  1\ncpu0 1 2 3 4 5 6 7 99999999999999999999 9 10\nintr 1\n",
    ],
    ids=["empty", "no CPU", "no steal", "no number", "a short line", "more than 64 bits"],
)
def test_a_stat_that_cannot_be_read_gives_no_row_and_does_no_harm(
    host: Host, sampler: CpuSampler, text: str
) -> None:
    sampler.take(1 * S)
    host.stat.write_text(text)
    assert rows_of(sampler, 2 * S) == []
    host.ticks({0: (100, 10), 1: (100, 10)})
    assert rows_of(sampler, 3 * S) == []
    host.ticks({0: (100, 10), 1: (100, 17)})
    assert rows_of(sampler, 4 * S) == [(1, 0, 7, 0)]


def test_a_host_without_the_files_has_no_rows(tmp_path: Path) -> None:
    sampler = CpuSampler(tmp_path / "none", tmp_path / "none")
    assert len(sampler.take(1 * S)) == len(sampler.take(2 * S)) == 0
    sampler.close()


def test_files_that_are_no_files_read_as_absent(host: Host, sampler: CpuSampler) -> None:
    (host.folder / "cpu0" / "cpufreq" / "cpuinfo_max_freq").mkdir(parents=True)
    host.frequency(1, 1_200_000)
    (host.folder / "cpu1" / "cpufreq" / "scaling_cur_freq").unlink()
    (host.folder / "cpu1" / "cpufreq" / "scaling_cur_freq").mkdir()
    sampler.take(1 * S)
    assert rows_of(sampler, 2 * S) == []


def test_256_cpus(host: Host, sampler: CpuSampler) -> None:
    """Their /proc/stat is larger than what is read at first."""
    host.ticks({cpu: (100, cpu) for cpu in range(256)})
    sampler.take(1 * S)
    host.ticks({cpu: (101 + cpu, 2 * cpu) for cpu in range(256)})
    assert host.stat.stat().st_size > 8192
    assert rows_of(sampler, 2 * S) == [(cpu, 1 + cpu, cpu, 0) for cpu in range(1, 256)]


def test_no_file_stays_open(host: Host) -> None:
    def opened() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = opened()
    host.ticks(dict.fromkeys(range(7), (100, 0)))
    for cpu in range(7):
        host.frequency(cpu, 1_200_000)
    sampler, totals = CpuSampler(host.stat, host.folder), NetTotals()
    sampler.take(1 * S)
    assert opened() == before + 1 + 7 + 4
    host.ticks(dict.fromkeys(range(3), (100, 0)))
    sampler.take(2 * S)
    assert opened() == before + 1 + 3 + 4
    sampler.close()
    totals.close()
    assert opened() == before


def test_busy_time_of_the_kernels_own_file_is_what_a_thread_burns(host: Host) -> None:
    # GIVEN frequencies that make every CPU worth a row
    cpu = min(os.sched_getaffinity(0))
    for each in range(os.cpu_count() or 1):
        host.frequency(each, 1_200_000)
    sampler = CpuSampler(cpus=host.folder)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        # WHEN this thread burns half a second of one CPU
        began = time.monotonic_ns()
        sampler.take(began)
        until = time.thread_time_ns() + S // 2
        while time.thread_time_ns() < until:
            pass
        ended = time.monotonic_ns()
        rows = sampler.take(ended)
    finally:
        os.sched_setaffinity(0, allowed)
        sampler.close()

    # THEN that CPU was busy for so long, and not for longer than it was looked at
    (busy_ns,) = rows["busy_ns"][rows["cpu"] == cpu].tolist()
    assert S // 2 - 5 * TICK_NS <= busy_ns <= ended - began + 5 * TICK_NS


CONNECT = r"""
import fcntl, json, socket, struct, time
from tailspan.collect.samples import NetTotals

with socket.socket() as any_socket:  # lo: up and running
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", 0x41))
totals = NetTotals()
before = totals.read()
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
for _ in range(23):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.close()
    assert server.recv(1) == b""
    server.close()
for _ in range(7):
    with socket.socket() as refused:
        assert refused.connect_ex(("127.0.0.1", 1)) != 0
kept = [socket.create_connection(listener.getsockname()) for _ in range(5)]
deadline = time.monotonic() + 10  # the last segments of a connection may still be on their way
while (after := totals.read())["TCP:tw"] < 23 or after["Tcp:CurrEstab"] < 10:
    assert time.monotonic() < deadline, after
full = socket.create_server(("127.0.0.1", 0), backlog=0)
queued = [socket.socket() for _ in range(3)]
for each in queued:
    each.setblocking(False)
    each.connect_ex(full.getsockname())
print(json.dumps([before, after, totals.read()]))
"""


def test_totals_of_a_network_namespace_are_what_happened_in_it() -> None:
    # GIVEN 23 connections that came to an end, 7 refused ones, 5 that stay, and then 3 to a full accept queue
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", CONNECT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no network namespace of one's own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    before, after, full = json.loads(done.stdout)

    def grown(name: str) -> int:
        return int(after[name]) - int(before[name])

    assert grown("Tcp:ActiveOpens") == 23 + 7 + 5
    assert grown("Tcp:PassiveOpens") == 23 + 5
    assert grown("Tcp:OutRsts") == 7
    assert grown("Tcp:RetransSegs") == grown("TcpExt:TCPTimeouts") == grown("TcpExt:ListenOverflows") == 0
    assert after["Tcp:CurrEstab"] == 2 * 5  # both ends
    assert after["TCP:inuse"] == 1 + 2 * 5  # and the listener
    assert after["TCP:tw"] == 23
    # one connection fits into a queue of 0; the others try again after 1 s
    assert full["TcpExt:ListenOverflows"] == full["TcpExt:ListenDrops"] >= 2


def test_what_this_kernel_does_not_say_is_absent(tmp_path: Path) -> None:
    (tmp_path / "snmp").write_text(
        "Ip: Forwarding InReceives\nIp: 1 23\nTcp: MaxConn OutRsts\nTcp: -1 7\nTcp: Odd\n"
    )
    (tmp_path / "netstat").write_text("TcpExt: TW TCPTimeouts\nTcpExt: 11\nIpExt: InNoRoutes\nIpExt: 5\n")
    (tmp_path / "sockstat").write_text("sockets: used 12\nTCP: inuse 3 orphan\n\nUDP: inuse 1\n")

    totals = NetTotals(tmp_path)

    assert totals.read() == {"Tcp:OutRsts": 7, "TcpExt:TW": 11, "TCP:inuse": 3}
    totals.close()
    assert totals.read() == {}
