"""What a request of the scorecard's worker goes through before inference: one stage, chosen by its path."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import socket
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

from tailspan.client import ActiveRequest
from tailspan.worker.cuda import CudaError, Device
from tests.scorecard.gpu import ALLOCATE_BYTES as GPU_BYTES
from tests.scorecard.gpu import COPY_BYTES, LAUNCHES
from tests.scorecard.upstream import LENGTH

Stage = Callable[[ActiveRequest], None]

DATA_BYTES = 32 << 20
READ_BYTES, READS = 16 << 10, 4
JOURNAL_ENTRY = b"j" * 4096
SMALL, LARGE = b"s" * 200, b"l" * 200_000
#: zlib lets go of the GIL above 5 KiB: a page-in then holds up nobody else.
TOUCH_BYTES, TOUCHES = 8 << 10, 192
ALLOCATE_BYTES = 16 << 20
#: About a millisecond of checksum.
SOME_WORK = bytes(4 << 20)


class Stages:
    """``folder``: on a real disk. One object for all handler threads."""

    def __init__(self, folder: Path, upstream: str, helper: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._helper = helper
        self._own = threading.local()  # each handler thread's connections and buffer
        self.lock = threading.Lock()
        self._data_path = folder / "data"
        self._data_path.write_bytes(random.randbytes(DATA_BYTES))
        self._data = os.open(self._data_path, os.O_RDONLY)
        os.fsync(self._data)
        self._direct = os.open(self._data_path, os.O_RDONLY | os.O_DIRECT)
        self._journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._mapped = mmap.mmap(self._data, DATA_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        self._mapped.madvise(mmap.MADV_RANDOM)  # one page-in, one page
        self._pages = memoryview(self._mapped)
        self.populate_pages()
        self._gpu = Device(buffer_bytes=COPY_BYTES)
        self.by_name: dict[str, Stage] = {
            "plain": lambda request: None,
            "fresh": lambda request: None,
            "heavy": lambda request: None,
            "disk": self.read_disk,
            "journal": self.append_journal,
            "upstream": lambda request: self.call(request, SMALL),
            "upload": lambda request: self.call(request, LARGE),
            "lock": self.take_lock,
            "pages": self.touch_pages,
            "memory": self.allocate,
            "helper": self.ask_helper,
            "gpu": self.use_gpu,
            "gpu_steps": self.use_gpu_in_steps,
            "gpu_memory": self.allocate_on_gpu,
            "gpu_load": self.load_into_gpu,
        }

    def read_disk(self, request: ActiveRequest) -> None:
        """A few blocks, past the page cache."""
        buffer: mmap.mmap | None = getattr(self._own, "buffer", None)
        if buffer is None:
            buffer = self._own.buffer = mmap.mmap(-1, READ_BYTES)  # O_DIRECT wants aligned memory
        with request.span("read"):
            for _ in range(READS):
                os.preadv(self._direct, [buffer], random.randrange(DATA_BYTES // READ_BYTES) * READ_BYTES)

    def append_journal(self, request: ActiveRequest) -> None:
        with request.span("journal"):
            os.write(self._journal, JOURNAL_ENTRY)
            os.fsync(self._journal)

    def call(self, request: ActiveRequest, message: bytes) -> None:
        connection: socket.socket | None = getattr(self._own, "upstream", None)
        if connection is None:
            connection = self._own.upstream = socket.create_connection(self._upstream, timeout=30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(None)  # a timeout would poll before every receive
        with request.span("call"):
            connection.sendall(LENGTH.pack(len(message)) + message)
            receive(connection, LENGTH.unpack(receive(connection, LENGTH.size))[0])

    def take_lock(self, request: ActiveRequest) -> None:
        with request.span("lock"), self.lock:
            pass

    def touch_pages(self, request: ActiveRequest) -> None:
        """Read here and there in a mapped file."""
        with request.span("pages"):
            for _ in range(TOUCHES):
                at = random.randrange(DATA_BYTES // TOUCH_BYTES) * TOUCH_BYTES
                zlib.crc32(self._pages[at : at + TOUCH_BYTES])

    def drop_pages(self) -> None:
        """From this mapping, and from the page cache, which keeps what is mapped."""
        self._mapped.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self._data, 0, 0, os.POSIX_FADV_DONTNEED)

    def populate_pages(self) -> None:
        self._data_path.read_bytes()
        zlib.crc32(self._pages)

    def allocate(self, request: ActiveRequest) -> None:
        with request.span("memory"):
            memory = mmap.mmap(-1, ALLOCATE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            first = ctypes.c_char.from_buffer(memory)
            ctypes.memset(ctypes.addressof(first), 1, ALLOCATE_BYTES)  # without the GIL
            del first
            memory.close()

    def use_gpu(self, request: ActiveRequest) -> None:
        """What is asked of it fails where the device has failed; the request goes on without."""
        with request.span("gpu"):
            try:
                self._gpu.run(LAUNCHES, COPY_BYTES)
            except CudaError:
                request.status = "degraded"

    def use_gpu_in_steps(self, request: ActiveRequest) -> None:
        """A little work of the CPU's before each launch, as a model that is not a graph has."""
        with request.span("gpu"):
            for _ in range(LAUNCHES):
                zlib.crc32(SOME_WORK)
                self._gpu.launch(1)
            self._gpu.synchronize()

    def allocate_on_gpu(self, request: ActiveRequest) -> None:
        with request.span("allocate"):
            self._gpu.free(self._gpu.allocate(GPU_BYTES))

    def load_into_gpu(self, request: ActiveRequest) -> None:
        with request.span("load"):
            self._gpu.load()

    def ask_helper(self, request: ActiveRequest) -> None:
        connection: socket.socket | None = getattr(self._own, "helper", None)
        if connection is None:
            connection = self._own.helper = socket.socket(socket.AF_UNIX)
            connection.connect(self._helper)
        with request.span("helper"):
            connection.sendall(b"?")
            receive(connection, 1)


def receive(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        more = connection.recv(count - len(got))
        if not more:
            raise ConnectionError("the other side has hung up")
        got += more
    return got
