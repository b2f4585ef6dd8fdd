"""The thread that asks the driver, so that nobody else ever waits for it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

from tailspan.collect.nvml.book import Book
from tailspan.collect.nvml.calls import (
    DRIVER_NOT_LOADED,
    LIB_RM_VERSION_MISMATCH,
    LIBRARY_NOT_FOUND,
    NO_PERMISSION,
    UNINITIALIZED,
    Nvml,
    NvmlError,
)
from tailspan.collect.nvml.outbox import Outbox, Taken
from tailspan.collect.nvml.session import Backoff, Session, WornOutError
from tailspan.timeline.gpus import GpuHost, NvmlState

_log = logging.getLogger(__name__)

_CLOSE_S = 2.0
#: However long a look took, the next one begins after this: a driver that hung for a minute would else not be
#: asked for hours. So a look of more than this times the budget exceeds the budget.
_LONGEST_PAUSE_S = 60.0
_STATES = {
    LIBRARY_NOT_FOUND: NvmlState.NO_LIBRARY,
    DRIVER_NOT_LOADED: NvmlState.NO_DRIVER,
    LIB_RM_VERSION_MISMATCH: NvmlState.NO_DRIVER,
    UNINITIALIZED: NvmlState.NO_DRIVER,
    NO_PERMISSION: NvmlState.NO_PERMISSION,
}


class GpuSampler:
    """Looks at every GPU each ``sample_ms``, or as seldom as keeps the time inside NVML to ``budget`` of all time.

    Never raises for want of a library, a driver, a device or a permission: :meth:`host` says so, and it is tried
    again, after a second at first, later each minute.
    """

    def __init__(self, sample_ms: int = 250, budget: float = 0.01) -> None:
        self._every_s, self._budget = sample_ms / 1000, budget
        self._nvml, self._book, self._outbox = Nvml(), Book(), Outbox()
        self._host = GpuHost(NvmlState.NO_DRIVER, "not asked yet")
        self._attempts = 0
        self._stop, self._settled = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._thread.start()

    def pace(self, sample_ms: int, budget: float) -> None:
        """As the constructor; from the next look on."""
        self._every_s, self._budget = sample_ms / 1000, budget

    def take(self) -> Taken:
        """All since the last take."""
        return self._outbox.take()

    def host(self) -> GpuHost:
        """As of the last look."""
        return self._host

    def gpus(self) -> list[dict[str, str]]:
        """By the numbers that the tables have. They never change."""
        return self._book.as_meta()

    def settled(self, timeout_s: float) -> bool:
        """Wait until it is known for the first time whether there is anything to read."""
        return self._settled.wait(timeout_s)

    def close(self) -> None:
        """A thread that the driver does not give back is left to it; it ends with the process."""
        self._stop.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                self._connect_and_look(backoff)
            except WornOutError:
                continue
            except NvmlError as error:
                self._say_why(error)
            except Exception as error:  # whatever a driver makes pynvml do, the agent goes on without GPUs
                _log.exception("NVML")
                self._say_why(NvmlError(UNINITIALIZED, f"{type(error).__name__}: {error}"))
            self._stop.wait(backoff.pause_s())

    def _connect_and_look(self, backoff: Backoff) -> None:
        """Until it is closed, or NVML fails."""
        self._attempts += 1
        self._nvml.connect()
        session = None
        try:
            session = Session(self._nvml, self._book, self._outbox)
            backoff.reset()
            while not self._stop.is_set():
                self._stop.wait(self._look(session))
        finally:
            if session is not None:
                session.close()

    def _look(self, session: Session) -> float:
        """How long to wait until the next one."""
        began_mono_ns, before_ns = time.monotonic_ns(), self._nvml.call_ns
        session.look(began_mono_ns)
        self._host = self._with_counts(GpuHost(NvmlState.WORKS, "", session.driver, session.readings()))
        self._settled.set()
        took_s = (time.monotonic_ns() - began_mono_ns) / 1e9
        in_nvml_s = (self._nvml.call_ns - before_ns) / 1e9
        return max(self._every_s - took_s, min(in_nvml_s / self._budget, _LONGEST_PAUSE_S), 0.0)

    def _say_why(self, error: NvmlError) -> None:
        if str(error) != self._host.why:
            _log.info("no GPU can be read: %s", error)
        state = _STATES.get(error.code, NvmlState.NO_DEVICE)
        gone = [name.reading(self._book.xids(name.uuid), str(error)) for name in self._book.cards()]
        self._host = self._with_counts(GpuHost(state, str(error), gpus=tuple(gone)))
        self._settled.set()

    def _with_counts(self, host: GpuHost) -> GpuHost:
        return replace(
            host,
            calls=self._nvml.calls,
            call_s=self._nvml.call_ns / 1e9,
            failures=dict(self._nvml.failures),
            attempts=self._attempts,
        )
