"""Faults that live inside the worker's process: threads that are started and stopped while it serves."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
from collections.abc import Callable

from tailspan.worker.comm import name_this_thread
from tests.scorecard.stages import Stages

#: About 1 ms of work in one call, which lets go of the GIL.
ROUNDS = 4_000
#: A full collection walks all of them: some 30 ms.
BALLAST = 1_000_000

Loop = Callable[[threading.Event], None]


class Switches:
    """``set(name, on)``. ``other_cpu``: one on which the handler threads do not run."""

    def __init__(self, stages: Stages, other_cpu: int) -> None:
        self._stages = stages
        self._other_cpu = other_cpu
        self._running: dict[str, tuple[threading.Event, list[threading.Thread]]] = {}
        self.accepting_late = threading.Event()
        self._ballast: list[list[object]] = []
        self._loops: dict[str, list[tuple[str, Loop]]] = {
            "lock_holder": [("lock-holder", self._hold_lock)],
            "nice_lock_holder": [("nice-holder", self._hold_lock_nicely)],
            "pool": [("own-pool", burn)] * 3,
            "pure_python": [("pure-python", self._spin)],
            "garbage": [("collector", self._collect)],
            "drop_pages": [("page-dropper", self._drop_pages)],
        }

    def set(self, name: str, on: bool) -> None:
        if name == "accept_late":
            (self.accepting_late.set if on else self.accepting_late.clear)()
        elif on:
            if name == "garbage":
                self._ballast = [[] for _ in range(BALLAST)]
            self._start(name)
        else:
            stop, threads = self._running.pop(name)
            stop.set()
            for thread in threads:
                thread.join()
            self._ballast = []

    def _start(self, name: str) -> None:
        stop = threading.Event()

        def run(comm: str, loop: Loop) -> None:
            name_this_thread(comm)
            loop(stop)

        threads = [threading.Thread(target=run, args=each, daemon=True) for each in self._loops[name]]
        for thread in threads:
            thread.start()
        self._running[name] = stop, threads

    def _hold_lock(self, stop: threading.Event) -> None:
        """Work of 25 ms with the lock, on another CPU, and as much time without."""
        os.sched_setaffinity(0, {self._other_cpu})
        while not stop.wait(0.025):
            with self._stages.lock:
                work(25)

    def _hold_lock_nicely(self, stop: threading.Event) -> None:
        """Little work with the lock, for a thread that others on its CPU come before."""
        os.sched_setaffinity(0, {self._other_cpu})
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not stop.wait(0.015):
            with self._stages.lock:
                work(3)

    def _spin(self, stop: threading.Event) -> None:
        """Bytecode and nothing else: it lets go of the GIL only when it is asked to, after 5 ms."""
        os.sched_setaffinity(0, {self._other_cpu})
        number = 0
        while not stop.is_set():
            for _ in range(10_000):
                number = (number * 3 + 1) % 65_537

    def _collect(self, stop: threading.Event) -> None:
        os.sched_setaffinity(0, {self._other_cpu})
        while not stop.wait(0.05):
            for _ in range(1000):
                cycle: list[object] = []
                cycle.append(cycle)
            gc.collect()

    def _drop_pages(self, stop: threading.Event) -> None:
        while not stop.wait(0.03):
            self._stages.drop_pages()
        self._stages.populate_pages()


def work(ms: int) -> None:
    for _ in range(ms):
        hashlib.pbkdf2_hmac("sha256", b"switch", b"salt", ROUNDS)


def burn(stop: threading.Event) -> None:
    while not stop.is_set():
        work(5)
