"""One connection to the driver: its GPUs, and what of them is due at each look."""

from __future__ import annotations

import logging
import time

from tailspan.collect.nvml.book import Book
from tailspan.collect.nvml.calls import NOT_FOUND, DisconnectedError, LostError, Nvml, NvmlError
from tailspan.collect.nvml.device import Device, Due
from tailspan.collect.nvml.events import Events
from tailspan.collect.nvml.outbox import Outbox
from tailspan.timeline.gpus import GpuReading
from tailspan.timeline.tables import GpuEventKind

_log = logging.getLogger(__name__)

SECOND_NS = 1_000_000_000
HALF_MINUTE_NS = 30 * SECOND_NS
#: A GPU that was plugged in again is found by who initialises NVML anew. That costs the others a row.
AGAIN_NS, AGAIN_ALL_LOST_NS = 600 * SECOND_NS, 60 * SECOND_NS


class WornOutError(NvmlError):
    """All is well, but only a connection of its own would find GPUs that came since."""


class Backoff:
    """When to try again: after a second, and twice as long each time, up to a minute."""

    FIRST_S, LAST_S = 1.0, 60.0

    def __init__(self) -> None:
        self._next_s = self.FIRST_S

    def reset(self) -> None:
        self._next_s = self.FIRST_S

    def pause_s(self) -> float:
        pause, self._next_s = self._next_s, min(2 * self._next_s, self.LAST_S)
        return pause


class Session:
    """Raises NvmlError where there is nothing to look at."""

    def __init__(self, nvml: Nvml, book: Book, outbox: Outbox) -> None:
        self._nvml, self._book, self._outbox = nvml, book, outbox
        self._begun_mono_ns = self._second_mono_ns = self._half_minute_mono_ns = 0
        self._devices: list[Device] = []
        self._missing: dict[str, str] = {}  # uuid -> why
        self._all_found = True
        self._retries: dict[str, tuple[Backoff, int]] = {}  # of lost ones: when next
        self._events = Events(nvml, book, outbox)
        self.driver = _driver(nvml)
        self._find()

    def look(self, now_mono_ns: int) -> None:
        """Raises DisconnectedError and WornOutError, after which it is of no more use than to be closed."""
        self._begun_mono_ns = self._begun_mono_ns or now_mono_ns
        half_minute = self._is_due(self._half_minute_mono_ns, HALF_MINUTE_NS, now_mono_ns)
        second = half_minute or self._is_due(self._second_mono_ns, SECOND_NS, now_mono_ns)
        if second:
            self._second_mono_ns = now_mono_ns
        if half_minute:
            self._half_minute_mono_ns = now_mono_ns
        for device in self._devices:
            due = Due(second, half_minute, half_minute, self._events.takes_ecc(device.name.row))
            self._look(device, due, now_mono_ns)
        self._give_up_on_lost(now_mono_ns)

    def readings(self) -> tuple[GpuReading, ...]:
        """Of those too that are not found any more."""
        found = [reading for each in self._devices for reading in each.readings(self._book.xids(each.name.uuid))]
        missing = [
            name.reading(self._book.xids(name.uuid), self._missing[name.uuid])
            for name in self._book.cards()
            if name.uuid in self._missing
        ]
        return (*found, *missing)

    def close(self) -> None:
        self._events.close()
        for device in self._devices:
            device.close()
        try:
            self._nvml.call("nvmlShutdown")
        except NvmlError:
            return

    def _find(self) -> None:
        failed: NvmlError | None = None
        for index in range(self._nvml.call("nvmlDeviceGetCount")):
            try:
                self._add(index)
            except DisconnectedError:
                raise
            except NvmlError as error:
                _log.warning("GPU %d: %s", index, error)
                failed, self._all_found = error, False
        if not self._devices:
            raise failed or NvmlError(NOT_FOUND, "NVML counts no device")
        here = {device.name.uuid for device in self._devices}
        for name in self._book.cards():
            if name.uuid not in here:
                self._missing[name.uuid] = str(failed or "the driver does not list it any more")

    def _add(self, index: int) -> None:
        handle = self._nvml.call("nvmlDeviceGetHandleByIndex", index)
        uuid = self._nvml.call("nvmlDeviceGetUUID", handle)
        name = self._book.name(uuid, str(self._nvml.call("nvmlDeviceGetName", handle)), index)
        if name is not None:
            self._devices.append(Device(self._nvml, handle, name, self._book))

    def _look(self, device: Device, due: Due, now_mono_ns: int) -> None:
        uuid = device.name.uuid
        if device.lost:
            retry, when_mono_ns = self._retries[uuid]
            if now_mono_ns < when_mono_ns:
                return
            if not device.is_back():
                self._retries[uuid] = retry, now_mono_ns + int(retry.pause_s() * SECOND_NS)
                return
            _log.info("%s (%s) answers again", device.name.name, uuid)
            self._outbox.put_event(now_mono_ns, device.name.row, GpuEventKind.BACK, 1)
            due = Due(second=True, half_minute=True, again=True)
        try:
            if due.half_minute:
                device.asked.again = True
                self._events.follow(device.asked, device.name)
            device.look(due, self._outbox)
        except LostError as error:
            device.lose(str(error))
            _log.warning("%s (%s): %s", device.name.name, uuid, error)
            self._outbox.put_event(time.monotonic_ns(), device.name.row, GpuEventKind.LOST, 1)
            retry = Backoff()
            self._retries[uuid] = retry, now_mono_ns + int(retry.pause_s() * SECOND_NS)

    def _give_up_on_lost(self, now_mono_ns: int) -> None:
        lost = [device for device in self._devices if device.lost]
        after_ns = AGAIN_ALL_LOST_NS if len(lost) == len(self._devices) else AGAIN_NS
        if (lost or self._missing or not self._all_found) and now_mono_ns - self._begun_mono_ns >= after_ns:
            raise WornOutError(NOT_FOUND, "GPUs that were lost are looked for")

    @staticmethod
    def _is_due(last_mono_ns: int, every_ns: int, now_mono_ns: int) -> bool:
        return now_mono_ns - last_mono_ns >= every_ns


def _driver(nvml: Nvml) -> str:
    """Its version; "" where it does not say."""
    try:
        return str(nvml.call("nvmlSystemGetDriverVersion"))
    except DisconnectedError:
        raise
    except NvmlError:
        return ""
