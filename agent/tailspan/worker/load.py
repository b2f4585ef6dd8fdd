"""``python -m tailspan.worker.load``: ask at a fixed rate, whether or not the answers keep up.

Every request has an intended time, and its latency counts from then, not from when it could be sent: a worker that
stands still for a second makes all the requests of that second slow, not one. Each carries a ``traceparent``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from tailspan.worker.arguments import positive_float, positive_int

TIMEOUT_S = 30.0


@dataclass(slots=True)
class Row:
    """One request. ``status`` 0: no answer. ``sent_late_ms``: what the generator itself was late by."""

    trace_id: str
    status: int
    intended_offset_s: float
    sent_late_ms: float
    latency_ms: float


@dataclass(slots=True)
class Summary:
    count: int
    errors: int
    seconds: float
    throughput_per_s: float  #: answers with status 200
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    sent_late_max_ms: float

    def __str__(self) -> str:
        ms = f"p50 {self.p50_ms:.1f}  p90 {self.p90_ms:.1f}  p99 {self.p99_ms:.1f}  p99.9 {self.p999_ms:.1f}"
        return (
            f"{self.count} requests, {self.errors} errors, {self.throughput_per_s:.1f}/s in {self.seconds:.1f} s\n"
            f"latency ms: {ms}  max {self.max_ms:.1f}  (sent late by at most {self.sent_late_max_ms:.1f})"
        )


class Generator:
    """``connections`` threads, each with a kept-alive connection, take the requests of the schedule in turn."""

    def __init__(self, url: SplitResult, rate: float, seconds: float, connections: int) -> None:
        self._address = (url.hostname or "127.0.0.1", url.port or 80)
        self._path = url.path or "/v1/infer"
        self._rate = rate
        self._numbers = iter(range(max(1, round(rate * seconds))))
        self._connections = connections
        self._start_s = 0.0
        self._random = random.Random()
        self._rows: list[Row] = []

    def run(self) -> list[Row]:
        """All requests in order of their intended times. Returns when the last is answered or given up."""
        threads = [threading.Thread(target=self._ask) for _ in range(self._connections)]
        self._start_s = time.monotonic() + 0.1  # threads take a while to start
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(self._rows, key=lambda row: row.intended_offset_s)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        for number in self._numbers:
            intended_s = self._start_s + number / self._rate
            time.sleep(max(0.0, intended_s - time.monotonic()))
            sent_s = time.monotonic()
            trace_id = f"{self._random.getrandbits(128) or 1:032x}"
            status = self._post(connection, number, trace_id)
            self._rows.append(
                Row(
                    trace_id,
                    status,
                    round(number / self._rate, 6),
                    round(1000 * (sent_s - intended_s), 3),
                    round(1000 * (time.monotonic() - intended_s), 3),
                )
            )
        connection.close()

    def _post(self, connection: http.client.HTTPConnection, number: int, trace_id: str) -> int:
        headers = {
            "Content-Type": "application/json",
            "traceparent": f"00-{trace_id}-{self._random.getrandbits(64) or 1:016x}-01",
        }
        try:
            connection.request("POST", self._path, json.dumps({"seed": number}), headers)
            response = connection.getresponse()
            response.read()
            return response.status
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request connects anew
            return 0


def summarise(rows: list[Row]) -> Summary:
    """``rows``: at least one, in order of intended times. The latencies of failed requests count too."""
    latencies = sorted(row.latency_ms for row in rows)
    answered = sum(row.status == 200 for row in rows)
    seconds = max(row.intended_offset_s + row.latency_ms / 1000 for row in rows)
    return Summary(
        count=len(rows),
        errors=len(rows) - answered,
        seconds=round(seconds, 3),
        throughput_per_s=round(answered / seconds, 3),
        p50_ms=percentile(latencies, 50),
        p90_ms=percentile(latencies, 90),
        p99_ms=percentile(latencies, 99),
        p999_ms=percentile(latencies, 99.9),
        max_ms=latencies[-1],
        sent_late_max_ms=max(row.sent_late_ms for row in rows),
    )


def percentile(ordered: list[float], percent: float) -> float:
    """The smallest value that ``percent`` % of them do not exceed; to a tenth."""
    return ordered[max(0, -(-len(ordered) * round(percent * 10) // 1000) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tailspan.worker.load", description=__doc__)
    parser.add_argument("--url", type=urlsplit, required=True, help="e.g. http://127.0.0.1:8000/v1/infer")
    parser.add_argument("--rate", type=positive_float, default=40.0, help="requests per second (default 40)")
    parser.add_argument("--seconds", type=positive_float, default=30.0, help="(default 30)")
    parser.add_argument(
        "--connections", type=positive_int, default=64, help="requests in flight at once (default 64)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary and one row per request")
    args = parser.parse_args()
    if args.url.scheme != "http" or not args.url.hostname:
        parser.error("--url must begin with http://")
    rows = Generator(args.url, args.rate, args.seconds, args.connections).run()
    summary = summarise(rows)
    print(summary)
    if args.json:
        args.json.write_text(json.dumps(asdict(summary) | {"requests": [asdict(row) for row in rows]}) + "\n")
    return 1 if summary.errors else 0


if __name__ == "__main__":
    sys.exit(main())
