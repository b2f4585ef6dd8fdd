"""Block requests that a followed thread waited for, and those of others meanwhile."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tailspan.collect.bpf.source import BpfSource
from tests.kernel.conftest import Recorder
from tests.workloads import program

pytestmark = [pytest.mark.kernel, pytest.mark.both_loaders]

READS = """
    import mmap
    file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    for i in range(int(sys.argv[2])): os.preadv(file, [page], 4096 * 2 * (i % 503))
"""


@pytest.fixture
def big_files() -> Iterator[list[Path]]:
    """On a real disk: tmp may be memory. Two, or the kernel merges what two processes read of one."""
    paths = [Path("/var/tmp") / f"tailspan-blocks-{os.getpid()}-{which}" for which in range(2)]
    for path in paths:
        path.write_bytes(os.urandom(4 << 20))
        with path.open("rb") as written:
            os.fsync(written.fileno())
    yield paths
    for path in paths:
        path.unlink()


@pytest.fixture
def big_file(big_files: list[Path]) -> Path:
    return big_files[0]


def test_101_direct_reads_are_101_requests_of_their_thread(
    source: BpfSource, recorder: Recorder, big_file: Path
) -> None:
    before = _reads(big_file)
    with program(READS, big_file, 101) as reader:
        source.follow([reader.pid])
        reader.go()
        reader.finish()
    recorder.drain()

    blocks = recorder.table("blocks")
    mine = blocks[(blocks["tid"] == reader.pid) & (blocks["op"] == 0) & (blocks["bytes"] == 4096)]
    assert len(np.unique(mine["sector"])) >= 101
    assert (mine["queued_mono_ns"] <= mine["issued_mono_ns"]).all()
    assert (mine["issued_mono_ns"] < mine["completed_mono_ns"]).all()
    device = big_file.stat().st_dev
    assert set(mine["dev"].tolist()) == {os.major(device) << 20 | os.minor(device)}
    # /proc/diskstats counts all of the host's: at least ours.
    assert _reads(big_file) - before >= 101


def _reads(path: Path) -> int:
    device = path.stat().st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        major, minor, _, reads, *_ = line.split()
        if (int(major), int(minor)) == (os.major(device), os.minor(device)):
            return int(reads)
    pytest.skip(f"{path} lies on no disk of /proc/diskstats")


def test_requests_of_others_are_recorded_only_while_a_followed_thread_sleeps_on_a_disk(
    source: BpfSource, recorder: Recorder, big_files: list[Path]
) -> None:
    with program("sys.stdin.readline()") as idle, program(READS, big_files[0], 53) as other:
        source.follow([idle.pid])
        idle.go()
        other.go()
        other.finish()
        recorder.drain()
        assert not len(recorder.table("blocks")), "nobody we follow waited"
        with program(READS, big_files[0], 499) as mine, program(READS, big_files[1], 10**9) as endless:
            source.follow([mine.pid])
            endless.go()
            mine.go()
            while mine.process.poll() is None:  # others' requests would fill the ring
                recorder.drain()
                time.sleep(0.01)
        recorder.drain()
        idle.go()
        idle.finish()

    blocks = recorder.table("blocks")
    assert ((blocks["tgid"] == mine.pid) & (blocks["bytes"] == 4096)).sum() >= 499
    assert (blocks["tgid"] == endless.pid).sum() > 0
