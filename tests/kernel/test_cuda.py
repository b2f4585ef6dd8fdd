"""CUDA calls as records: real uprobes on a ``libcuda.so.1`` of ours, in processes that we know all about."""

import os
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from tailspan.collect.bpf import cuda
from tailspan.collect.bpf.cuda import CudaProbes
from tailspan.collect.bpf.libbpf import BpfObject
from tailspan.collect.bpf.source import BpfSource
from tailspan.wire.events import GpuCallKind
from tests.conftest import eventually
from tests.fakes import build
from tests.fakes.device import FakeGpu
from tests.kernel.conftest import Recorder
from tests.workloads import Program, program

pytestmark = pytest.mark.kernel

MS = 1_000_000


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """The programs that are started from now on see it."""
    monkeypatch.setenv("FAKE_GPU", str(tmp_path / "gpu"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build.library("cuda.c", "libcuda.so.1")))
    return FakeGpu(tmp_path / "gpu")


@pytest.fixture
def probes(source: BpfSource) -> Iterator[CudaProbes]:
    found = CudaProbes(source)
    yield found
    found.close()


def _ready(source: BpfSource, probes: CudaProbes, caller: Program) -> None:
    """The caller has a device, and its calls are seen from here on."""
    source.follow([caller.pid])
    caller.go()
    assert caller.line() == "device"
    eventually(lambda: (probes.poll([caller.pid]), probes.status().attached)[1] > 0, "its library is found")
    caller.go()


CALLER = """
from tailspan.worker.cuda import Device
device = Device()
print("device", flush=True)
sys.stdin.readline()
"""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def caller_that(body: str) -> AbstractContextManager[Program]:
    """Has a ``device``, and waits for :func:`_ready` before it calls."""
    return program(CALLER + textwrap.dedent(body))


@pytest.mark.both_loaders
def test_23_of_each_call_are_23_records(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu
) -> None:
    gpu.devices[0].set(load_ns=3 * MS, alloc_ns=2 * MS, free_ns=0, kernel_ns=2 * MS)
    body = """
        def timed(call, *arguments):
            before = time.monotonic_ns(); result = call(*arguments); after = time.monotonic_ns()
            print(before, after); return result
        for _ in range(23):
            device.launch(3)
            timed(device.synchronize)
            address = timed(device.allocate, 4096)
            timed(device.free, address)
            timed(device.copy_in, 1000)
            timed(device.load)
        print(threading.get_native_id())
    """
    with caller_that(body) as caller:
        _ready(source, probes, caller)
        *lines, tid = caller.finish()
    recorder.drain()

    calls = np.sort(recorder.table("gpu_calls"), order="enter_mono_ns")  # a ring a CPU
    kinds = [GpuCallKind.SYNC, GpuCallKind.ALLOC, GpuCallKind.FREE, GpuCallKind.COPY, GpuCallKind.LOAD]
    assert calls["kind"].tolist() == kinds * 23
    assert set(calls["tid"].tolist()) == {int(tid)}
    assert set(calls["tgid"].tolist()) == {caller.pid}
    assert set(calls["result"].tolist()) == {0}
    assert calls["bytes"].tolist() == [0, 4096, 0, 1000, 0] * 23
    assert calls["launches"].tolist() == [3, 0, 0, 0, 0] * 23
    # Each lies inside what the program's own clock saw of it, and is nearly all of it.
    before, after = np.array([line.split() for line in lines], np.int64).T
    assert (calls["enter_mono_ns"] >= before).all()
    assert (calls["exit_mono_ns"] <= after).all()
    took = calls["exit_mono_ns"] - calls["enter_mono_ns"]
    assert (took[0::5] >= 5 * MS).all()  # three kernels, launched a little before
    assert (took[1::5] >= 2 * MS).all()
    assert (took[4::5] >= 3 * MS).all()
    launched = calls["launch_mono_ns"]
    assert (launched[0::5] > 0).all()
    assert (launched[0::5] < calls["enter_mono_ns"][0::5]).all()
    assert not launched[1::5].any()


@pytest.mark.parametrize("sleeps", [0, 1], ids=["spinning", "sleeping"])
def test_a_wait_is_its_whole_length_however_the_library_waits(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu, sleeps: int
) -> None:
    gpu.devices[0].set(kernel_ns=40 * MS, sync_sleeps=sleeps)
    with caller_that("device.launch(1); device.synchronize()") as caller:
        _ready(source, probes, caller)
        caller.finish()
    recorder.drain()

    (call,) = recorder.table("gpu_calls")
    assert 38 * MS < call["exit_mono_ns"] - call["launch_mono_ns"] < 80 * MS


def test_launches_are_counted_exactly_and_never_recorded(
    source: BpfSource, recorder: Recorder, gpu: FakeGpu
) -> None:
    probes = CudaProbes(source, calls_per_s=1_000_000)
    gpu.devices[0].set(kernel_ns=1)
    with caller_that("device.launch(100_003); device.synchronize(); sys.stdin.readline()") as caller:
        _ready(source, probes, caller)
        eventually(lambda: gpu.devices[0].launches == 100_003, "all are launched", seconds=60)
        probes.poll([caller.pid])
        hits = probes.status().hits
        caller.go()
        caller.finish()
    recorder.drain()
    probes.close()

    assert hits["launch"] == 100_003
    calls = recorder.table("gpu_calls")
    assert calls["kind"].tolist() == [GpuCallKind.SYNC]
    assert calls["launches"].tolist() == [100_003]
    assert recorder.lost() == 0


def test_what_fails_says_so(source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu) -> None:
    body = """
        from tailspan.worker.cuda import CudaError
        try: device.allocate(81 << 30)
        except CudaError: pass
    """
    with caller_that(body) as caller:
        _ready(source, probes, caller)
        caller.finish()
    recorder.drain()

    assert recorder.table("gpu_calls")[["kind", "result", "bytes"]].tolist() == [(GpuCallKind.ALLOC, 2, 81 << 30)]


def test_a_child_process_is_probed_too(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu
) -> None:
    body = """
        child = os.fork()
        if not child:
            sys.stdin.readline()
            device.launch(5); device.synchronize(); os._exit(0)
        print(child, flush=True)
        assert os.waitpid(child, 0)[1] == 0
    """
    with caller_that(body) as caller:
        _ready(source, probes, caller)
        child = int(caller.line())
        eventually(
            lambda: (probes.poll([caller.pid, child]), probes.status().processes)[1] == 2, "the child is found"
        )
        caller.go()
        caller.finish()
    recorder.drain()

    assert recorder.table("gpu_calls")[["tgid", "launches"]].tolist() == [(child, 5)]


def test_who_is_not_followed_has_no_probes(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu
) -> None:
    """A breakpoint is a change of the code in memory: that of a process that is not followed is as in the file."""
    body = """
        import ctypes
        code = ctypes.cast(ctypes.CDLL("libcuda.so.1").cuStreamSynchronize, ctypes.c_void_p).value
        print(ctypes.string_at(code, 1).hex(), flush=True)
        device.synchronize()
    """
    first = {}
    for followed in (True, False):
        with caller_that(body) as caller:
            if followed:
                _ready(source, probes, caller)
            else:
                caller.go()
                caller.line()
                caller.go()
            first[followed] = caller.line()
            caller.finish()
    recorder.drain()

    assert first[True] == "cc"  # int3
    assert first[False] != "cc"
    assert len(recorder.table("gpu_calls")) == 1


def test_a_kind_that_is_too_frequent_is_left_alone(source: BpfSource, recorder: Recorder, gpu: FakeGpu) -> None:
    probes = CudaProbes(source, calls_per_s=500)
    gpu.devices[0].set(kernel_ns=1)
    body = """
        stopped = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.readline(), stopped.set())).start()
        while not stopped.is_set(): device.launch(100); device.synchronize(); time.sleep(0.01)
    """
    with caller_that(body) as caller:
        _ready(source, probes, caller)
        eventually(
            lambda: (probes.poll([caller.pid]), probes.status().off)[1] == {"launch": 1}, "launches are too many"
        )
        hits = probes.status().hits["launch"]
        launched = gpu.devices[0].launches
        eventually(lambda: gpu.devices[0].launches > launched + 500, "the program goes on")
        probes.poll([caller.pid])

        # THEN no launch is counted any more, and other calls still are
        assert probes.status().hits["launch"] == hits <= launched
        recorder.drain()
        seen = len(recorder.table("gpu_calls"))
        eventually(
            lambda: (recorder.drain(), len(recorder.table("gpu_calls")))[1] > seen, "waits are still recorded"
        )
        caller.go()
        caller.finish()
    probes.close()


def test_nothing_is_left_when_a_process_has_ended(source: BpfSource, probes: CudaProbes, gpu: FakeGpu) -> None:
    before = open_files()
    with caller_that("device.launch(7); device.synchronize()") as caller:
        _ready(source, probes, caller)
        assert open_files() > before
        caller.finish()
    # THEN who drains the rings has not waited for the kernel to take the probes off
    began = time.monotonic()
    probes.poll([])
    assert time.monotonic() - began < 0.25
    eventually(lambda: open_files() == before, "all links are closed")
    status = probes.status()
    assert (status.processes, status.attached) == (0, 0)
    assert status.hits["launch"] == 7  # what came after the last look is counted too


def test_a_library_that_comes_late_is_found(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "SOON_S", 0.05)
    body = """
        from tailspan.worker.cuda import Device
        device = Device()
        print("device", flush=True)
        sys.stdin.readline()
        for _ in range(7): device.synchronize()
    """
    with program(body) as caller:
        source.follow([caller.pid])
        probes.poll([caller.pid])
        assert probes.status().processes == 0
        _ready(source, probes, caller)
        caller.finish()
    recorder.drain()

    assert recorder.table("gpu_calls")["kind"].tolist() == [GpuCallKind.SYNC] * 7


def test_calls_of_any_thread_are_seen_with_a_perf_event_each_too(
    open_source: Callable[..., BpfSource], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel whose links of many uprobes are none, or are of one thread only."""
    monkeypatch.setattr(BpfObject, "uprobe_multi_takes_processes", lambda *_: False)
    source = open_source()
    recorder, probes = Recorder(source), CudaProbes(source)
    body = """
        def work():
            device.launch(3); device.synchronize(); device.free(device.allocate(4096))
            print(threading.get_native_id())
        for _ in range(7):
            thread = threading.Thread(target=work); thread.start(); thread.join()
    """
    before = open_files()
    with caller_that(body) as caller:
        _ready(source, probes, caller)
        tids = [int(line) for line in caller.finish()]
    recorder.drain()
    probes.close()

    calls = np.sort(recorder.table("gpu_calls"), order="enter_mono_ns")
    assert calls["tid"].tolist() == [tid for tid in tids for _ in range(3)]
    assert calls["kind"].tolist() == [GpuCallKind.SYNC, GpuCallKind.ALLOC, GpuCallKind.FREE] * 7
    assert calls["bytes"].tolist() == [0, 4096, 0] * 7
    assert calls["launches"].tolist() == [3, 0, 0] * 7
    assert probes.status().hits["launch"] == 3 * 7
    assert open_files() == before


def test_a_process_that_became_another_program_is_probed_as_that(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu
) -> None:
    body = """
        device.synchronize()
        os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
    """
    with program(
        CALLER + textwrap.dedent(body),
        f"import sys{CALLER}for _ in range(7): device.launch(1)\ndevice.synchronize()",
    ) as caller:
        _ready(source, probes, caller)
        assert caller.line() == "device"
        probes.poll([caller.pid])
        caller.go()
        caller.finish()
    recorder.drain()

    calls = np.sort(recorder.table("gpu_calls"), order="enter_mono_ns")
    assert calls[["kind", "launches"]].tolist()[0] == (GpuCallKind.SYNC, 0)
    assert calls[["kind", "launches"]].tolist()[-1] == (GpuCallKind.SYNC, 7)


LIBRARY = """
__attribute__((noinline)) int padding(int x) { return PADDING; }
__attribute__((noinline)) int cuInit(unsigned flags) { return flags; }
__attribute__((noinline)) int cuCtxSetCurrent(void *context) { return !context; }
__attribute__((noinline)) int cuCtxSynchronize(void) { return padding(7) == 0; }
extern __attribute__((alias("cuCtxSynchronize"))) int cuCtxSynchronize_v2(void);
"""


def test_a_function_of_two_names_is_counted_once_and_a_file_that_was_written_anew_is_read_anew(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, tmp_path: Path
) -> None:
    """The same inode with its functions elsewhere: a breakpoint in the midst of an instruction would be fatal."""
    code, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    code.write_text(LIBRARY)
    body = f"""
        import ctypes
        cuda = ctypes.CDLL("{library}")
        print("device", flush=True)
        sys.stdin.readline()
        for _ in range(23): cuda.cuCtxSynchronize()
    """
    inodes = set()
    for times, padding in enumerate(("x", "x * x + (x << 3) ^ (x * 11) ^ (x / 7) ^ (x % 13)"), start=1):
        built = tmp_path / "built"
        command = ["clang", "-O1", "-shared", "-fPIC", f"-DPADDING={padding}", str(code), "-o", str(built)]
        subprocess.run(command, check=True)
        library.write_bytes(built.read_bytes())
        inodes.add(library.stat().st_ino)
        with program(body) as caller:
            _ready(source, probes, caller)
            assert probes.status().attached == 1
            caller.finish()
        probes.poll([])
        recorder.drain()
        assert len(recorder.table("gpu_calls")) == 23 * times
        assert probes.status().hits["sync"] == 23 * times
    assert len(inodes) == 1


def test_what_only_has_the_name_of_a_library_is_counted_as_an_error(
    source: BpfSource, probes: CudaProbes, tmp_path: Path
) -> None:
    library = tmp_path / "libcuda.so.1"
    library.write_bytes(b"\x7fELF\x02\x01" + b"\xff" * 8192)
    body = f"""
        import mmap
        with open("{library}", "rb") as file:
            held = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
        print("mapped", flush=True)
        sys.stdin.readline()
    """
    with program(body) as caller:
        caller.go()
        assert caller.line() == "mapped"
        for _ in range(3):
            probes.poll([caller.pid])
        caller.go()
        caller.finish()

    (error,) = probes.status().errors.items()
    assert error == ("not readable as ELF: headers of an unknown size", 1)
    assert probes.status().processes == 0


RUNTIME = """
#include <setjmp.h>
#include <stdio.h>
extern int cuInit(unsigned); extern int cuCtxSetCurrent(void *); extern int cuStreamSynchronize(void *);
static jmp_buf out;
__attribute__((noinline)) int cudaStreamSynchronize(void *stream)
{
	int result = cuStreamSynchronize(stream);
	putchar('.');
	return result;
}
__attribute__((noinline)) int cudaDeviceSynchronize(void) { longjmp(out, 1); }
int main(void) {
	cuInit(0); cuCtxSetCurrent((void *)1); puts("device"); fflush(stdout); getchar();
	for (int i = 0; i < 23; i++) {
		if (!setjmp(out)) cudaDeviceSynchronize();
		cudaStreamSynchronize(0);
	}
	puts(""); fflush(stdout);
}
"""


def test_of_a_call_in_a_call_the_outer_one_is_recorded_and_one_left_by_longjmp_is_not(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu, tmp_path: Path
) -> None:
    """The runtime linked into the program: its functions are found in its symbol table."""
    code, runner = tmp_path / "runtime.c", tmp_path / "cuda_program"
    code.write_text(RUNTIME)
    library = os.environ["LD_LIBRARY_PATH"]
    subprocess.run(["clang", "-O1", str(code), "-o", str(runner), f"{library}/libcuda.so.1"], check=True)
    process = subprocess.Popen([runner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "device\n"
        source.follow([process.pid])
        eventually(lambda: (probes.poll([process.pid]), probes.status().attached)[1] > 4, "both files are found")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "." * 23 + "\n"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    recorder.drain()

    calls = recorder.table("gpu_calls")
    assert calls["kind"].tolist() == [GpuCallKind.SYNC] * 23
    assert (calls["exit_mono_ns"] >= calls["enter_mono_ns"]).all()


def test_a_library_in_another_root_is_found(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu, tmp_path: Path
) -> None:
    """As in a container: the path is the process's own, and means nothing here."""
    inside = tmp_path / "inside"
    inside.mkdir()
    body = f"""
        libraries = os.environ["LD_LIBRARY_PATH"]
        os.system(f"mount --bind {{libraries}} {inside}")
        import ctypes
        cuda = ctypes.CDLL("{inside}/libcuda.so.1")
        assert not cuda.cuInit(0); cuda.cuCtxSetCurrent(ctypes.c_void_p(1))
        print("device", flush=True)
        sys.stdin.readline()
        for _ in range(7): cuda.cuCtxSynchronize()
    """
    with program(body, prefix=("unshare", "--mount")) as caller:
        _ready(source, probes, caller)
        caller.finish()
    recorder.drain()

    assert recorder.table("gpu_calls")["kind"].tolist() == [GpuCallKind.SYNC] * 7
    assert not (inside / "libcuda.so.1").exists()


def test_what_is_lifted_is_off_until_the_next_poll(
    source: BpfSource, recorder: Recorder, probes: CudaProbes, gpu: FakeGpu
) -> None:
    body = """
        for line in sys.stdin:
            for _ in range(7): device.synchronize()
            print("done", flush=True)
    """
    with caller_that(body) as caller:
        before = open_files()
        _ready(source, probes, caller)
        caller.go()
        assert caller.line() == "done"
        probes.lift()
        assert probes.status().attached == 0
        eventually(lambda: open_files() == before, "all links are closed")
        caller.go()
        assert caller.line() == "done"
        # WHEN all else was off and on again too
        source.pause()
        source.resume()
        eventually(lambda: (probes.poll([caller.pid]), probes.status().attached)[1] > 0, "they are back")
        caller.go()
        assert caller.line() == "done"
    recorder.drain()

    assert recorder.table("gpu_calls")["kind"].tolist() == [GpuCallKind.SYNC] * 14
    probes.poll([])
    assert probes.status().hits["sync"] == 14
