"""Nobody takes what it exports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.fault import Fault
from tests.chaos.scene import Scene


@contextlib.contextmanager
def backend_gone(scene: Scene) -> Iterator[None]:
    scene.backend.close()
    try:
        yield
    finally:
        scene.backend.open()


WHAT = "the OTLP backend is dead, and comes back"
FAULT = Fault("backend_gone", WHAT, backend_gone, seconds=10.0, witness="tailspan_otlp_failures_total")
