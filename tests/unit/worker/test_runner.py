"""What the executor does for a batch, and what it tells of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tailspan.client
from tailspan.client.ort import Profiler
from tailspan.worker import model
from tailspan.worker.batching import Batcher, Job
from tailspan.worker.cuda import CudaError
from tailspan.worker.runner import Runner


class FakeDevice:
    """A CUDA device that notes what is asked of it."""

    uuid = "GPU-a"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.broken = False

    def allocate(self, nbytes: int) -> int:
        self.asked.append(("allocate", nbytes))
        return 4711

    def free(self, address: int) -> None:
        self.asked.append(("free", address))
        if self.broken:
            raise CudaError("cuMemFree_v2", 700)

    def run(self, launches: int, nbytes: int) -> None:
        self.asked.append(("run", launches))
        if self.broken:
            raise CudaError("cuStreamSynchronize", 700)


@pytest.fixture
def loaded(tmp_path: Path) -> model.Model:
    return model.load(tmp_path, width=4, threads=1)


@pytest.fixture
def make_runner(loaded: model.Model) -> Callable[..., Runner]:
    return lambda device=None, **given: Runner(loaded, Profiler(loaded, loaded.profiled), device, **given)


def test_a_model_on_the_cpu_names_its_provider_and_no_gpu(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner()
    assert runner.run(np.zeros((3, model.FEATURES), np.float32)).shape == (3, model.CLASSES)
    facts = runner.about()
    assert (facts.device, facts.provider, facts.profile) == ("", "CPUExecutionProvider", None)


def test_a_batch_uses_the_device_before_the_model(make_runner: Callable[..., Runner]) -> None:
    device = FakeDevice()
    runner = make_runner(device, launches=23, allocate_bytes=4096)
    runner.run(np.zeros((1, model.FEATURES), np.float32))
    assert device.asked == [("allocate", 4096), ("run", 23), ("free", 4711)]
    assert runner.about().device == "GPU-a"


def test_a_device_that_fails_fails_its_batch_and_keeps_no_memory(
    make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    device = FakeDevice()
    runner = make_runner(device, launches=1, allocate_bytes=64)
    client = tailspan.client.connect("test", path=tmp_path / "absent.sock")
    batcher = Batcher(runner.run, client, "m", max_batch=1, max_wait_s=0.0, queue=8, about=runner.about)

    def ask() -> Job:
        job = batcher.submit(np.zeros(model.FEATURES, np.float32))
        assert job.done.wait(10)
        return job

    device.broken = True
    failed = ask()
    assert str(failed.error) == "cuStreamSynchronize returned CUresult 700"
    assert device.asked[-1] == ("free", 4711)
    # AND the next one is served
    device.broken = False
    served = ask()
    assert served.error is None
    assert served.execution is not None
    assert served.execution.facts.device == "GPU-a"
    batcher.stop()
    client.close()
