"""``python -m tests.chaos.worker``: the reference worker, which also says what its client has done.

Each line on standard input is answered by one line of JSON; the end of standard input ends it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import tailspan.client
from tailspan.client import Client, pauses
from tailspan.client.connection import Connection
from tailspan.wire.spans import Message
from tailspan.worker import model
from tailspan.worker.batching import Batcher
from tailspan.worker.server import Server

#: About 2 ms of CPU time a request.
MODEL_WIDTH = 40


class Counting:
    """What a client sends on, counted by itself. ``lock``: of all that send on the same connection."""

    def __init__(self, connection: Connection, lock: threading.Lock) -> None:
        self.made = self.dropped = 0
        self._connection, self._lock = connection, lock
        self._longest_ns = 0

    @property
    def pid(self) -> int:
        return self._connection.pid

    def ready(self) -> bool:
        began_ns = time.monotonic_ns()
        ready = self._connection.ready()
        self._took(time.monotonic_ns() - began_ns)
        return ready

    def drop(self) -> None:
        with self._lock:
            self._connection.drop()
            self.made += 1
            self.dropped += 1

    def send(self, message: Message) -> None:
        with self._lock:
            before = self._connection.dropped
            began_ns = time.monotonic_ns()
            self._connection.send(message)
            self._took(time.monotonic_ns() - began_ns)
            self.made += 1
            self.dropped += self._connection.dropped - before

    def take_longest_ms(self) -> float:
        """The longest call into the client since it was asked before."""
        longest_ns, self._longest_ns = self._longest_ns, 0
        return longest_ns / 1e6

    def _took(self, ns: int) -> None:
        self._longest_ns = max(self._longest_ns, ns)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the model")
    parser.add_argument("--socket", required=True, help="of the agent")
    args = parser.parse_args()
    loaded = model.load(args.folder, MODEL_WIDTH, 1)
    loaded.warm(8)
    client = tailspan.client.connect("tailspan-worker", model.VERSION, path=args.socket)
    connection, lock = client.connection, threading.Lock()
    pauses.unwatch(connection)  # their number is the interpreter's: what is sent shall be what was served
    requests, batches = Counting(connection, lock), Counting(connection, lock)
    batcher = Batcher(loaded.run, Client(cast(Any, batches)), model.NAME, max_batch=8, max_wait_s=0.002, queue=256)
    server = Server(("127.0.0.1", 0), batcher, Client(cast(Any, requests)))
    threading.Thread(target=server.serve_forever, args=(0.1,), name="accept", daemon=True).start()
    print(server.server_port, flush=True)
    for _ in sys.stdin:
        told = {
            "requests": requests.made,
            "requests_dropped": requests.dropped,
            "dropped": client.dropped,
            "longest_call_ms": max(requests.take_longest_ms(), batches.take_longest_ms()),
        }
        print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
