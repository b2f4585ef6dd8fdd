"""Counters that survive a killed process, so that the next one knows what died with it.

A file of fixed slots; each change is one write of eight bytes, which the kernel has when it returns. The file is
not mapped into memory: one that somebody truncates would then kill the process that touches it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import threading
from pathlib import Path

from tailspan.export.folder import make
from tailspan.log import once_per

log = logging.getLogger(__name__)

SLOTS = 1024
MAX_KEY_BYTES = 39

_MAGIC = b"TSTALLY1"
_SLOT = struct.Struct(f"<B{MAX_KEY_BYTES}sQ")
_VALUE = struct.Struct("<Q")
_VALUE_AT = _SLOT.size - _VALUE.size
_MOST = (1 << 64) - 1
_SIZE = len(_MAGIC) + SLOTS * _SLOT.size


class Tally:
    """Named counters, 0 until they are added to. Thread-safe; nothing raises but a bad key (ValueError).

    Where the file cannot be had, they live as long as the process does, and a line in the log says so. What was no
    tally, or damaged, starts anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}
        self._values: dict[str, int] = {}
        self._free = list(range(SLOTS - 1, -1, -1))
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            log.warning("%s cannot be used, so a killed agent's losses stay unknown: %s", path, error)
            self._give_up()

    def add(self, key: str, by: int = 1) -> None:
        """Where all slots are taken, a new key is not counted, and a line in the log says so."""
        with self._lock:
            self._set(key, self._values.get(key, 0) + by)

    def set(self, key: str, value: int) -> None:
        with self._lock:
            self._set(key, value)

    def get(self, key: str) -> int:
        with self._lock:
            return self._values.get(key, 0)

    def remove(self, key: str) -> None:
        with self._lock:
            slot = self._slots.pop(key, None)
            if slot is not None:
                del self._values[key]
                self._free.append(slot)
                self._write(_offset(slot), bytes(_SLOT.size))

    def keys(self, prefix: str = "") -> list[str]:
        with self._lock:
            return [key for key in self._values if key.startswith(prefix)]

    def close(self) -> None:
        with self._lock:
            self._give_up()

    def _set(self, key: str, value: int) -> None:
        value = min(max(value, 0), _MOST)
        slot = self._slots.get(key)
        if slot is not None:
            self._values[key] = value
            self._write(_offset(slot) + _VALUE_AT, _VALUE.pack(value))
            return
        name = key.encode()
        if not 0 < len(name) <= MAX_KEY_BYTES:
            raise ValueError(f"a tally's key has 1 to {MAX_KEY_BYTES} bytes: {key!r}")
        if not self._free:
            once_per(600, f"tally {self._path}", log, "%s is full: %s is not counted", self._path, key)
            return
        slot = self._slots[key] = self._free.pop()
        self._values[key] = value
        self._write(_offset(slot), _SLOT.pack(len(name), name, value))

    def _open(self) -> None:
        make(self._path.parent)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another agent with the same store keeps it
        os.fchmod(self._fd, 0o640)
        raw = os.pread(self._fd, _SIZE + 1, 0)
        if raw and not (len(raw) == _SIZE and raw.startswith(_MAGIC)):
            log.warning("%s is damaged: it starts anew", self._path)
            raw = b""
        if not raw:
            os.ftruncate(self._fd, 0)
            os.posix_fallocate(self._fd, 0, _SIZE)  # a disk that fills later leaves the counters be
            os.pwrite(self._fd, _MAGIC, 0)
            return
        self._load(raw)

    def _load(self, raw: bytes) -> None:
        damaged = 0
        for slot in range(SLOTS):
            length, name, value = _SLOT.unpack_from(raw, _offset(slot))
            if not length:
                continue
            key = _decoded(name[:length]) if length <= MAX_KEY_BYTES else ""
            if not key or key in self._slots:
                damaged += 1
                self._write(_offset(slot), bytes(_SLOT.size))
                continue
            self._slots[key], self._values[key] = slot, value
        taken = set(self._slots.values())
        self._free = [slot for slot in self._free if slot not in taken]
        if damaged:
            log.warning("%s has %d damaged counters: they start anew", self._path, damaged)

    def _write(self, offset: int, data: bytes) -> None:
        if self._fd < 0:
            return
        try:
            os.pwrite(self._fd, data, offset)
        except OSError as error:
            once_per(600, f"tally {self._path}", log, "%s cannot be written: %s", self._path, error)

    def _give_up(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def _offset(slot: int) -> int:
    return len(_MAGIC) + slot * _SLOT.size


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return ""
