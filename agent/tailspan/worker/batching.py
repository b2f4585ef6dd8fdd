"""Dynamic batching: handler threads queue jobs, one executor thread runs them several at a time.

A batch starts when it is full, or when the executor has waited long enough for it to fill. While one runs, the
next gathers in the queue. The queue is bounded, and a job that finds it full is refused at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tailspan.client import Client
from tailspan.client.ort import Profile
from tailspan.worker.comm import name_this_thread
from tailspan.worker.model import Floats


class QueueFullError(Exception):
    """There is no room for another job."""


class StoppingError(Exception):
    """No more jobs are taken."""


@dataclass(slots=True)
class Facts:
    """What else is known of a run: on which GPU, by what, and its profile if one was taken."""

    device: str = ""
    provider: str = ""
    profile: Profile | None = None


@dataclass(slots=True)
class Execution:
    """One batch that ran. ``start_mono_ns``: when it stopped waiting for more jobs."""

    batch_id: int
    size: int
    capacity: int
    tid: int
    start_mono_ns: int
    end_mono_ns: int = 0
    facts: Facts = field(default_factory=Facts)


@dataclass(slots=True, eq=False)
class Job:
    """One request's input, (FEATURES,). Once ``done`` it has an ``execution``, and ``output`` or ``error``."""

    input: Floats
    enqueue_mono_ns: int
    done: threading.Event = field(default_factory=threading.Event)
    execution: Execution | None = None
    output: Floats | None = None
    error: Exception | None = None


class Batcher:
    """``run``: (n, FEATURES) -> (n, CLASSES). Every batch is told to ``client`` under ``name``.

    ``about``: asked after each run, on its thread.
    """

    def __init__(
        self,
        run: Callable[[Floats], Floats],
        client: Client,
        name: str,
        *,
        max_batch: int,
        max_wait_s: float,
        queue: int,
        about: Callable[[], Facts] = Facts,
    ) -> None:
        self._run = run
        self._about = about
        self._client = client
        self._name = name
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._room = queue
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._execute, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, input: Floats) -> Job:
        """Queue one input; wait for the job's ``done``. Raises QueueFullError or StoppingError."""
        job = Job(input, time.monotonic_ns())
        with self._changed:
            if self._stopping:
                raise StoppingError
            if len(self._waiting) >= self._room:
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stop(self) -> None:
        """Refuse new jobs, and return when those that were taken are done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _execute(self) -> None:
        name_this_thread("batcher")
        batch_id = 0
        while jobs := self._gather():
            batch_id += 1
            execution = Execution(
                batch_id, len(jobs), self._max_batch, threading.get_native_id(), time.monotonic_ns()
            )
            with self._client.batch(batch_id, len(jobs), self._max_batch, self._name):
                self._run_batch(jobs, execution)

    def _gather(self) -> list[Job]:
        """The next batch; empty when there will be none."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            deadline = time.monotonic() + self._max_wait_s
            while self._waiting and len(self._waiting) < self._max_batch and not self._stopping:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    break
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]

    def _run_batch(self, jobs: list[Job], execution: Execution) -> None:
        outputs: Floats | None = None
        error: Exception | None = None
        try:
            outputs = self._run(np.stack([job.input for job in jobs]))
        except Exception as failure:  # the model's, of any type: the batch fails, the worker goes on
            error = failure
        execution.end_mono_ns = time.monotonic_ns()
        execution.facts = self._about()
        for index, job in enumerate(jobs):
            job.execution = execution
            job.error = error
            job.output = None if outputs is None else outputs[index]
            job.done.set()
