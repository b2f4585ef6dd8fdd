"""The CUDA driver as the worker calls it, on the device of tests/fakes."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailspan.errors import CannotError
from tailspan.worker import cuda
from tailspan.worker.cuda import CudaError, Device, device_uuid

from ...fakes import build
from ...fakes.device import FakeGpu

FIRST_UUID = "GPU-00000000-0000-4000-8000-000000000000"
KERNEL_NS = 1_000_000


@pytest.fixture
def make_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeGpu]:
    """A file of its own is a library of its own: it maps the GPU of this test."""

    def make(**fields: int) -> FakeGpu:
        gpu = FakeGpu(tmp_path / "gpu", **{"count": 2, "kernel_ns": KERNEL_NS} | fields)
        library = tmp_path / "libcuda.so"
        shutil.copy(build.library("cuda.c", "libcuda.so.1") / "libcuda.so.1", library)
        monkeypatch.setenv("FAKE_GPU", str(gpu.path))
        monkeypatch.setattr(cuda, "LIBRARY", str(library))
        return gpu

    return make


def test_a_device_has_the_uuid_that_nvml_reports(make_gpu: Callable[..., FakeGpu]) -> None:
    make_gpu()
    assert device_uuid() == FIRST_UUID
    assert device_uuid(1) == FIRST_UUID[:-1] + "1"


@pytest.mark.parametrize("ordinal", [2, -1])
def test_a_device_that_is_not_there_has_none(make_gpu: Callable[..., FakeGpu], ordinal: int) -> None:
    make_gpu()
    assert device_uuid(ordinal) == ""
    with pytest.raises(CannotError, match=f"no CUDA device {ordinal}"):
        Device(ordinal)


def test_a_host_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-absent.so.1")
    assert device_uuid() == ""
    with pytest.raises(CannotError, match="libcuda-absent"):
        Device()


def test_a_part_of_a_gpu_has_a_uuid(make_gpu: Callable[..., FakeGpu], monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a driver whose two functions differ, as they do for a MIG device
    make_gpu()
    real = cuda._Driver.uuid

    def uuid(self: Any, name: str, device: int) -> Any:
        return real(self, name, 1 if name == "cuDeviceGetUuid_v2" else device)

    monkeypatch.setattr(cuda._Driver, "uuid", uuid)
    assert device_uuid() == f"MIG-{FIRST_UUID[4:-1]}1"


def test_launches_do_not_wait_and_a_synchronisation_does(make_gpu: Callable[..., FakeGpu]) -> None:
    gpu = make_gpu()
    device = Device()
    start = time.monotonic_ns()
    device.launch(23)
    assert gpu.devices[0].launches == 23
    device.synchronize()
    assert time.monotonic_ns() - start >= 23 * KERNEL_NS


def test_a_run_ends_when_the_device_is_done(make_gpu: Callable[..., FakeGpu]) -> None:
    gpu = make_gpu()
    device = Device()
    start = time.monotonic_ns()
    device.run(7, 4096)
    assert time.monotonic_ns() - start >= 7 * KERNEL_NS
    assert gpu.devices[0].launches == 7


def test_any_thread_may_use_it(make_gpu: Callable[..., FakeGpu]) -> None:
    gpu = make_gpu()
    device = Device()
    threads = [threading.Thread(target=device.run, args=(5, 64)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gpu.devices[0].launches == 15


def test_memory_and_code_come_and_go(make_gpu: Callable[..., FakeGpu]) -> None:
    make_gpu(load_ns=5_000_000)
    device = Device()
    first, second = device.allocate(4096), device.allocate(4096)
    assert first != second
    device.free(first)
    device.free(second)
    start = time.monotonic_ns()
    device.load()
    assert time.monotonic_ns() - start >= 5_000_000


def test_a_call_that_fails_names_itself_and_its_result(make_gpu: Callable[..., FakeGpu]) -> None:
    gpu = make_gpu()
    device = Device()
    gpu.devices[0].set(alloc_result=2)
    with pytest.raises(CudaError, match="cuMemAlloc_v2 returned CUresult 2") as raised:
        device.allocate(4096)
    assert raised.value.result == 2
    # AND the next call is another matter
    device.run(1, 64)


@pytest.mark.parametrize("nbytes", [-1, (1 << 20) + 1])
def test_a_copy_fits_the_buffer(make_gpu: Callable[..., FakeGpu], nbytes: int) -> None:
    make_gpu()
    device = Device()
    for copy in (device.copy_in, device.copy_out):
        with pytest.raises(ValueError, match="the buffer has 1048576"):
            copy(nbytes)
