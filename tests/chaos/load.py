"""``python -m tests.chaos.load``: ask at a fixed rate, whether or not the answers keep up, until told otherwise.

Writes a line per request to a file: when it was due (monotonic ns), its latency from then on, and its status, 0
for no answer. Lines on standard input: ``pause`` is answered by how many requests were made, once all have their
answers; ``go`` goes on. Its end ends it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from typing import TextIO

CONNECTIONS = 16
TIMEOUT_S = 30.0


class Asking:
    """``CONNECTIONS`` threads take the requests of one schedule in turn."""

    def __init__(self, port: int, rate: float, rows: TextIO) -> None:
        self._port, self._between_ns, self._rows = port, int(1e9 / rate), rows
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # of who waits for the next request to be due
        self._going = True
        self._due_ns = time.monotonic_ns() + self._between_ns
        self._made = self._in_flight = 0
        for _ in range(CONNECTIONS):
            threading.Thread(target=self._ask, daemon=True).start()

    def pause(self) -> int:
        with self._changed:
            self._going = False
            self._changed.wait_for(lambda: not self._in_flight)
            return self._made

    def go(self) -> None:
        with self._changed:
            self._going = True
            self._due_ns = max(self._due_ns, time.monotonic_ns())
            self._changed.notify_all()

    def _take(self) -> tuple[int, int]:
        """The number of the next request, and when it is due."""
        with self._changed:
            self._changed.wait_for(lambda: self._going)
            due_ns, self._due_ns = self._due_ns, self._due_ns + self._between_ns
            self._made += 1
            self._in_flight += 1
            return self._made, due_ns

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        while True:
            with self._turn:
                number, due_ns = self._take()
                time.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            status = _post(connection, number)
            latency_ms = (time.monotonic_ns() - due_ns) / 1e6
            with self._changed:
                self._rows.write(f"{due_ns} {latency_ms:.3f} {status}\n")
                self._in_flight -= 1
                self._changed.notify_all()


def _post(connection: http.client.HTTPConnection, number: int) -> int:
    try:
        connection.request("POST", "/v1/infer", json.dumps({"seed": number}))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        connection.close()  # the next request connects anew
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--rows", required=True, metavar="FILE")
    args = parser.parse_args()
    with open(args.rows, "w", buffering=1) as rows:
        asking = Asking(args.port, args.rate, rows)
        for line in sys.stdin:
            if line == "pause\n":
                print(asking.pause(), flush=True)
            else:
                asking.go()
        asking.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
