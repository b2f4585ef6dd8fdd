"""No space left where it stores: evidence and spool cannot be written."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import STORE_MIB, Scene


@contextlib.contextmanager
def disk_full(scene: Scene) -> Iterator[None]:
    ballast = scene.store / "ballast"
    try:
        with ballast.open("wb", 0) as file:
            try:
                for _ in range(STORE_MIB * 256):
                    file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        yield
    finally:
        ballast.unlink()


WITNESS = 'tailspan_export_dropped_total{exporter="local",reason="enospc"}'
FAULT = Fault("disk_full", "no space left in the store", disk_full, seconds=10.0, witness=WITNESS)
