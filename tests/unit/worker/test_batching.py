"""Dynamic batching: what goes together, what is refused, and what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tailspan.client
from tailspan.client import Client
from tailspan.wire.spans import Activation, ActivationKind, Hello
from tailspan.worker.batching import Batcher, Execution, Job, QueueFullError, StoppingError
from tailspan.worker.model import Floats

from ..client.listener import Listener

BUDGET_S = 10.0
LONG_S = 3600.0


class Gate:
    """A model that runs when it is let: it returns its input, and remembers the size of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.entered = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def run(self, batch: Floats) -> Floats:
        self.sizes.append(len(batch))
        self.entered.release()
        assert self.let.acquire(timeout=BUDGET_S)
        return batch

    def wait_until_it_runs(self) -> None:
        assert self.entered.acquire(timeout=BUDGET_S)


def an_input(number: int) -> Floats:
    return np.full(3, number, np.float32)


def finished(job: Job) -> tuple[Execution, float]:
    """The execution that carried it, and the first number of its output."""
    assert job.done.wait(BUDGET_S)
    assert job.execution is not None
    assert job.output is not None
    return job.execution, float(job.output[0])


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    client = tailspan.client.connect("test", path=tmp_path / "absent.sock")
    yield client
    client.close()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def make(client: Client, gate: Gate) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(
        run: Callable[[Floats], Floats] = gate.run, max_batch: int = 4, max_wait_s: float = 0.0, queue: int = 8
    ) -> Batcher:
        made.append(Batcher(run, client, "m", max_batch=max_batch, max_wait_s=max_wait_s, queue=queue))
        return made[-1]

    yield make
    gate.let.release(1000)
    for batcher in made:
        batcher.stop()


def test_jobs_that_come_while_a_batch_runs_go_together_in_order(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make()
    first = batcher.submit(an_input(0))
    gate.wait_until_it_runs()
    others = [batcher.submit(an_input(number)) for number in range(1, 7)]
    gate.let.release(3)
    ran = [finished(job) for job in (first, *others)]
    assert gate.sizes == [1, 4, 2]
    assert [execution.batch_id for execution, _ in ran] == [1, 2, 2, 2, 2, 3, 3]
    assert [execution.size for execution, _ in ran] == [1, 4, 4, 4, 4, 2, 2]
    # AND each job got its own row back
    assert [output for _, output in ran] == [0, 1, 2, 3, 4, 5, 6]


def test_a_full_batch_does_not_wait(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make(max_batch=2, max_wait_s=LONG_S)
    gate.let.release(1)
    jobs = [batcher.submit(an_input(n)) for n in range(2)]
    assert finished(jobs[0])[0] is finished(jobs[1])[0]


def test_a_lone_job_waits_no_longer_than_it_was_told_to(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make(max_wait_s=0.02)
    gate.let.release(1)
    job = batcher.submit(an_input(1))
    execution, _ = finished(job)
    assert execution.size == 1
    assert execution.start_mono_ns - job.enqueue_mono_ns >= 20_000_000 * 0.9


def test_a_job_that_finds_the_queue_full_is_refused_and_the_others_are_served(
    make: Callable[..., Batcher], gate: Gate
) -> None:
    batcher = make(queue=3)
    running = batcher.submit(an_input(0))
    gate.wait_until_it_runs()
    waiting = [batcher.submit(an_input(n)) for n in range(3)]
    with pytest.raises(QueueFullError):
        batcher.submit(an_input(9))
    gate.let.release(2)
    for job in (running, *waiting):
        finished(job)
    assert gate.sizes == [1, 3]


def test_a_model_that_fails_fails_its_batch_and_no_other(make: Callable[..., Batcher]) -> None:
    def run(batch: Floats) -> Floats:
        if batch[0][0] == 13:
            raise RuntimeError("unlucky")
        return batch

    batcher = make(run)
    failed = batcher.submit(an_input(13))
    assert failed.done.wait(BUDGET_S)
    assert str(failed.error) == "unlucky"
    assert failed.output is None
    assert failed.execution is not None
    assert finished(batcher.submit(an_input(14)))[1] == 14


def test_stopping_finishes_what_was_taken_and_refuses_more(make: Callable[..., Batcher], gate: Gate) -> None:
    batcher = make(max_wait_s=LONG_S)
    jobs = [batcher.submit(an_input(n)) for n in range(3)]
    gate.let.release(1)
    batcher.stop()
    assert [finished(job)[1] for job in jobs] == [0, 1, 2]
    with pytest.raises(StoppingError):
        batcher.submit(an_input(3))


def test_each_batch_is_told_with_the_executors_thread_and_the_times_of_the_run(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "worker.sock")
    client = tailspan.client.connect("test", path=listener.path)
    peer = listener.accept()
    peer.expect(Hello)
    batcher = Batcher(lambda batch: batch, client, "m", max_batch=3, max_wait_s=LONG_S, queue=8)
    jobs = [batcher.submit(an_input(n)) for n in range(3)]
    execution, _ = finished(jobs[2])
    activation = peer.expect(Activation)
    assert (activation.kind, activation.owner, activation.name) == (ActivationKind.BATCH, execution.batch_id, "m")
    assert (activation.size, activation.capacity) == (execution.size, execution.capacity) == (3, 3)
    assert activation.tid == execution.tid != threading.get_native_id()
    assert jobs[2].enqueue_mono_ns <= execution.start_mono_ns <= execution.end_mono_ns
    assert execution.start_mono_ns <= activation.start_mono_ns <= execution.end_mono_ns <= activation.end_mono_ns
    batcher.stop()
    client.close()
    listener.stop()
