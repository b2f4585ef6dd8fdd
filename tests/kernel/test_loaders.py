"""The two loaders, side by side on one workload: they write the same records, field by field."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailspan.collect.bpf import loader as loaders
from tailspan.collect.bpf.probes import PROBES
from tailspan.collect.bpf.programs import Options
from tailspan.collect.bpf.source import BpfSource
from tailspan.errors import CannotError
from tailspan.wire.events import CycleFlags
from tests.conftest import eventually
from tests.kernel.conftest import Recorder
from tests.workloads import LAST_CPU, cpu_hog, program

pytestmark = pytest.mark.kernel

US, MS = 1_000, 1_000_000

#: Sleeps, locks, pipes, sockets, a disk, a child, signals, and a CPU that is somebody else's half of the time.
EVERYTHING = """
import mmap, signal, socket, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", 0))
lock, asked = threading.Lock(), threading.Semaphore(0)
r, w = os.pipe()

def help():
    for _ in range(11):
        asked.acquire(); time.sleep(0.002); os.write(w, b"x")
    with lock: time.sleep(0.02)

def serve():
    for _ in range(3):
        there, _ = listener.accept()
        while there.recv(100):
            time.sleep(0.003); there.sendall(b"y" * 5000)
        there.close()

helper, server = threading.Thread(target=help), threading.Thread(target=serve)
helper.start(); server.start()
for _ in range(11):
    asked.release(); os.read(r, 1)
time.sleep(0.005)
with lock: pass
for _ in range(3):
    here = socket.create_connection(listener.getsockname())
    for _ in range(5):
        here.sendall(b"x"); time.sleep(0.002); here.recv(10000)
    here.close()
server.join()
direct = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
for at in range(13): os.preadv(direct, [page], 4096 * at)
subprocess.run(["/bin/true"])
for _ in range(3): os.kill(os.getpid(), signal.SIGTERM)
until = time.monotonic() + 0.3
while time.monotonic() < until: pass
helper.join()
"""
#: Table -> the process that a record is of; others' may come before the second source is there.
OF = {
    "cycles": "tgid",
    "thread_events": "",
    "sockets": "tgid",
    "connections": "tgid",
    "blocks": "tgid",
    "incidents": "target_tgid",
    "syscalls": "tgid",
}


def flat(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Field -> values, those of nested structs too."""
    found: dict[str, np.ndarray] = {}
    for name in rows.dtype.names or ():
        if rows[name].dtype.names:
            found |= {f"{name}.{inner}": values for inner, values in flat(rows[name]).items()}
        else:
            found[name] = rows[name]
    return found


def assert_same(table: str, core: np.ndarray, bcc: np.ndarray) -> None:
    """Each program reads the clock when it is its turn: times are close, all else is equal."""
    assert len(core) == len(bcc) > 0, table
    for (name, one), other in zip(flat(core).items(), flat(bcc).values(), strict=True):
        if name.endswith("_ns"):
            apart = np.abs(one - other)
            assert np.median(apart) < 100 * US, f"{table}.{name}: {apart}"
            assert (apart < 20 * MS).all(), f"{table}.{name}: {apart}"
        else:
            assert one.tolist() == other.tolist(), f"{table}.{name}"


def test_both_loaders_write_the_same_records(tmp_path: Path, open_source: Callable[..., BpfSource]) -> None:
    # GIVEN a process that both follow, one after the other, while it does nothing
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 16))
    sources = [open_source(loader=name, short_wait_ns=0) for name in ("core", "bcc")]
    recorders = [Recorder(source) for source in sources]
    with program(EVERYTHING, file, cpu=LAST_CPU) as worker, cpu_hog(LAST_CPU):
        for source in sources:
            source.attach("syscalls")
            source.follow([worker.pid])
        worker.go()
        worker.finish()
    for recorder in recorders:
        recorder.drain()
        assert recorder.lost() == 0

    # THEN every record of the one is a record of the other
    for name, of in OF.items():
        core, bcc = (recorder.table(name) for recorder in recorders)
        if of:
            core, bcc = core[core[of] == worker.pid], bcc[bcc[of] == worker.pid]
        if name == "cycles":  # the turn in which it was adopted begins there
            core, bcc = (rows[rows["flags"] & CycleFlags.SEEDED == 0] for rows in (core, bcc))
        assert_same(name, core, bcc)
    # AND so do slices: who had the CPU, and for how long
    core, bcc = (recorder.table("slices") for recorder in recorders)
    begun = max(core["start_mono_ns"][0], bcc["start_mono_ns"][0]) + MS
    assert_same("slices", core[core["start_mono_ns"] > begun], bcc[bcc["start_mono_ns"] > begun])
    # AND all counted calls
    counts = [
        {(tgid, nr): int(hist["count"]) for tgid, nr, hist in source.syscall_histograms()} for source in sources
    ]
    assert counts[0] == counts[1]


def tables(source: BpfSource) -> dict[str, int]:
    """How many tasks, sockets and listeners bcc's programs remember."""
    object_ = source._loaded.object
    return {
        name: len(object_.map(name).keys(size)) for name, size in (("follows", 8), ("conns", 8), ("listeners", 32))
    }


SERVES = """
import socket
hosts = (socket.AF_INET, ""), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::"), (socket.AF_INET6, "::1")
listeners = [socket.create_server((host, 0), family=family) for family, host in hosts]
held = []
for listener in listeners:
    host = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
    here = socket.create_connection((host, listener.getsockname()[1])); there, _ = listener.accept()
    here.sendall(b"x"); there.recv(1)
    held += [here, there]
threading.Thread(target=time.sleep, args=(0.01,)).start()
print("up", flush=True)
sys.stdin.readline()
"""


def test_what_bcc_remembers_of_tasks_and_sockets_goes_with_them(open_source: Callable[..., BpfSource]) -> None:
    source = open_source(loader="bcc")
    with program(SERVES) as worker:
        source.follow([worker.pid])
        worker.go()
        assert worker.line() == "up"
        assert tables(source)["follows"] in (1, 2)
        assert tables(source) | {"follows": 1} == {"follows": 1, "conns": 12, "listeners": 4}
        worker.go()
        worker.finish()

    eventually(lambda: not any(tables(source).values()), f"what is over is forgotten: {tables(source)}")


def test_the_kernels_symbols_say_what_its_btf_says() -> None:
    needed = {needs for probe in PROBES for needs in (probe.programs | probe.bcc).values()}

    assert needed & loaders._tracepoints() == needed & loaders.choose("bcc").kernel


def test_symbols_that_are_hidden_are_told(tmp_path: Path) -> None:
    (tmp_path / "kallsyms").touch()
    for kallsyms in (tmp_path / "kallsyms", tmp_path / "absent"):
        with pytest.raises(CannotError, match="ProtectKernelTunables=no"):
            loaders._tracepoints(kallsyms)


@pytest.mark.parametrize(("wanted", "chosen"), [("auto", "core"), ("core", "core"), ("bcc", "bcc")])
def test_the_loader_is_the_configured_one_or_core(
    open_source: Callable[..., BpfSource], wanted: str, chosen: str
) -> None:
    source = open_source(loader=wanted)

    assert source.loader == chosen
    assert source.loader_why.startswith("BTF at /sys" if wanted == "auto" else "as configured")
    assert ("compiled by bcc on a stub of headers made from" in source.loader_why) == (chosen == "bcc")


def test_a_kernel_without_btf_and_headers_is_told_what_each_loader_needs(
    tmp_path: Path, compiled_programs: None
) -> None:
    with pytest.raises(CannotError, match=r"CONFIG_DEBUG_INFO_BTF=y .* nor can bcc: .*linux-headers"):
        BpfSource(Options(vmlinux=tmp_path / "absent"))
    with pytest.raises(CannotError, match="CONFIG_DEBUG_INFO_BTF"):
        BpfSource(Options(vmlinux=tmp_path / "absent", loader="core"))


def test_programs_are_compiled_once(compiled_programs: None) -> None:
    folder = Path(os.environ["CACHE_DIRECTORY"])
    for short_wait_ns in (10_000, 20_000):
        BpfSource(Options(loader="bcc", short_wait_ns=short_wait_ns)).close()

    (kept,) = folder.glob("programs-*")
    assert (kept.stat().st_mode & 0o777, kept.stat().st_uid) == (0o755, os.geteuid())
