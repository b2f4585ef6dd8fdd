"""What the driver reports by itself: XIDs, and memory errors that could not be corrected."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from tailspan.collect.nvml.book import Book, Name
from tailspan.collect.nvml.calls import TIMEOUT, Asked, DisconnectedError, LostError, Nvml, NvmlError, address
from tailspan.collect.nvml.outbox import Outbox
from tailspan.timeline.tables import GpuEventKind

_log = logging.getLogger(__name__)

#: nvmlEventType*.
_DOUBLE_BIT_ECC, _XID = 0x2, 0x8
_WAIT_MS = 1000
_JOIN_S = 1.2
#: After a failure that would come again at once.
_PAUSE_S = 1.0


class Events:
    """One event set, and a thread that sleeps in it. Where the driver has none, no thread."""

    def __init__(self, nvml: Nvml, book: Book, outbox: Outbox) -> None:
        self._nvml, self._book, self._outbox = nvml, book, outbox
        self._set: Any = None
        self._names: dict[int, Name] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ecc: set[int] = set()  # rows of GPUs of which a memory error was reported

    def follow(self, asked: Asked, name: Name) -> None:
        """Called again it does nothing, unless it failed before. Raises LostError and DisconnectedError."""
        if address(asked.handle) in self._names or not self._has_set(asked):
            return
        types = asked.ask("nvmlDeviceGetSupportedEventTypes")
        wanted = (_DOUBLE_BIT_ECC | _XID) & (types if types is not None else _XID)
        self._names[address(asked.handle)] = name  # before its first event
        try:
            self._nvml.call("nvmlDeviceRegisterEvents", asked.handle, wanted, self._set)
        except NvmlError as error:
            del self._names[address(asked.handle)]
            if isinstance(error, LostError | DisconnectedError):
                raise
            asked.failed("nvmlDeviceRegisterEvents", error.code, str(error))
            return
        asked.refused.pop("nvmlDeviceRegisterEvents", None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="nvml-events", daemon=True)
            self._thread.start()

    def takes_ecc(self, row: int) -> bool:
        """Whether a memory error of that GPU was reported since the last call."""
        reported = row in self._ecc
        self._ecc.discard(row)
        return reported

    def close(self) -> None:
        """A thread that does not come back keeps its set: freeing it would pull it away under NVML."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        if self._set is not None and not (self._thread and self._thread.is_alive()):
            try:
                self._nvml.call("nvmlEventSetFree", self._set)
            except NvmlError:
                return

    def _has_set(self, asked: Asked) -> bool:
        if self._set is None:
            try:
                self._set = self._nvml.call("nvmlEventSetCreate")
            except DisconnectedError:
                raise
            except NvmlError as error:
                asked.failed("nvmlEventSetCreate", error.code, str(error))
                return False
        asked.refused.pop("nvmlEventSetCreate", None)
        return True

    def _wait(self) -> None:
        while not self._stop.is_set():
            try:
                event = self._nvml.call("nvmlEventSetWait", self._set, _WAIT_MS, waits=True)
            except DisconnectedError:
                return
            except NvmlError as error:
                if error.code != TIMEOUT:
                    self._stop.wait(_PAUSE_S)
                continue
            self._hear(event)

    def _hear(self, event: Any) -> None:
        name = self._names.get(address(event.device))
        if name is None:
            return
        if event.eventType == _XID:
            xid = int(event.eventData)
            _log.warning("%s (%s): XID %d", name.name, name.uuid, xid)
            self._book.count_xid(name.uuid, xid)
            self._outbox.put_event(time.monotonic_ns(), name.row, GpuEventKind.XID, xid)
        elif event.eventType == _DOUBLE_BIT_ECC:
            self._ecc.add(name.row)
