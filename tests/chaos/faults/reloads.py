"""SIGHUP every 100 ms, with files that are right and files that are not."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from itertools import cycle

from tests.chaos.beside import beside
from tests.chaos.fault import Fault
from tests.chaos.scene import Scene

EVERY_S = 0.1
FILES = (
    "",
    "[slow]\nslo_ms = 7\n",
    "[[",
    "[slow]\nfactor = 3.0\nmin_excess_ms = 1\n[agent]\ntick_ms = 40\n",
    "[slow]\nslo = 7\n",
    "[store]\nkeep = 'all'\nsegment_mib = 1\ntotal_mib = 4\ndays = 1\n",
    "[follow]\npeers = 0\nexecutables = ['/usr/bin/sleep', '/nowhere']\nports = [1, 80]\nunits = ['no.service']\n",
    "[probes]\nsyscalls = 'on'\n",
    "[worker]\nmax_connections = 0\npackets_per_s = -1\n",
    "[worker]\npackets_per_s = 1000\nmax_connections = 16\n[health]\nwarning = 3\n",
    "[window]\nseconds = 7\nmax_rows = 2000\n[gpu]\nsample_ms = 100\n",
    "\0\1\2",
    "x = " + "[" * 2000,
    "# " + "long " * 50_000,
    "[follow]\ncgroups = ['/*']\npids = [1]\n",
)


@contextlib.contextmanager
def reloads(scene: Scene) -> Iterator[None]:
    def reload(ended: threading.Event) -> None:
        order = random.Random(7).sample(FILES, len(FILES))
        for text in cycle(order):
            scene.configure(text)
            scene.agent.signal(signal.SIGHUP)
            if ended.wait(EVERY_S):
                break

    try:
        with beside(reload):
            yield
    finally:
        scene.configure("")
        scene.agent.signal(signal.SIGHUP)


FAULT = Fault(
    "reloads",
    "SIGHUP every 100 ms, with good and with broken files",
    reloads,
    short_s=1.2,
    witness="tailspan_config_reloads_total",
)
