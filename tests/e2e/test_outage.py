"""A backend that is dead for a while, and an agent that is killed meanwhile: every verdict arrives once.

``TAILSPAN_OUTAGE_S=600 pytest -s tests/e2e/test_outage.py`` has the backend dead for ten minutes.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tailspan.attribute.verdict import Outcome
from tailspan.export.local import SegmentReader
from tests.conftest import eventually
from tests.e2e.conftest import AgentProcess, free_port, metric
from tests.e2e.test_otlp_receivers import Received, http_receiver
from tests.workloads import program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

OUTAGE_S = float(os.environ.get("TAILSPAN_OUTAGE_S", "12"))
#: A verdict comes a judging turn after its request, and is in the spool a moment later.
LAST_MOMENT_S = 1.0
SERIES = 'tailspan_lost_records_total{class="client_message"}'

#: Some thirty requests a second. Two in three are slower than the objective: were it four in five, they would
#: become the norm. Prints of each its span, when it ended, and whether it was meant to be slow.
SERVE = """
import tailspan.client
client = tailspan.client.connect(service="toy", path=sys.argv[1])
until = time.monotonic() + float(sys.argv[2])
ended = []

def serve():
    while time.monotonic() < until:
        for slow in (0, 1, 1):
            with client.request("POST /toy") as request:
                time.sleep(0.05 if slow else 0.002)
                span = request.traceparent().split("-")[2]
            ended.append((span, time.monotonic(), slow))
            time.sleep(0.12)

threads = [threading.Thread(target=serve) for _ in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for span, at, slow in ended: print(span, at, slow)
print("dropped", client.dropped, flush=True)
"""


def test_every_verdict_of_an_outage_arrives_once_though_the_agent_is_killed_in_it(
    run_agent: Callable[..., AgentProcess],
) -> None:
    received: Received = queue.Queue()
    backend, metrics = free_port(), free_port()

    def start(folder: AgentProcess | None = None) -> AgentProcess:
        return run_agent(
            "slow.slo_ms=20",
            f"export.prometheus=127.0.0.1:{metrics}",
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{backend}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            folder=folder.folder if folder else None,
        )

    # GIVEN a backend that is dead, and a worker with slow requests
    agent = start()
    with program(SERVE, agent.socket, OUTAGE_S) as worker:
        worker.go()
        time.sleep(OUTAGE_S / 2)
        # WHEN the agent is killed and started again in the middle of it
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait()
        killed_s = time.monotonic()
        agent = start(agent)
        back_s = time.monotonic()
        *lines, last = worker.finish()
    told = [line.split() for line in lines]
    slow = {span: float(at) for span, at, slow in told if slow == "1"}
    dropped = int(last.split()[1])
    eventually(lambda: metric(metrics, 'tailspan_otlp_queued_bytes{signal="traces"}') > 0, "they wait")
    # AND the backend comes back
    with http_receiver(received, backend):
        eventually(
            lambda: metric(metrics, 'tailspan_otlp_queued_bytes{signal="traces"}') == 0,
            "all is delivered",
            seconds=120,
        )
        missed = metric(metrics, SERIES)
        killed = metric(metrics, 'tailspan_export_dropped_total{exporter="otlp",reason="killed"}')
        agent.stop()
    found = verdicts_of(received)

    # THEN each has come once, but for those of the last moment before the kill, and of the time without an agent
    assert set(found.values()) == {1}
    assert set(found) <= {span for span, *_ in told}
    # A turn has time for so many verdicts; what is slow beyond that is stored, and judged when it is read.
    stored = [entry.row for entry in SegmentReader(agent.store).rows()]
    unjudged = {row.span_id for row in stored if row.outcome == Outcome.UNJUDGED}
    assert len(unjudged) <= 0.05 * len(slow)
    assert not unjudged & found.keys()
    missing = {span: at for span, at in slow.items() if span not in found.keys() | unjudged}
    print(
        f"{len(told)} requests in {OUTAGE_S:g} s, {len(slow)} slow, {len(found)} verdicts,"
        f" {len(unjudged)} unjudged; without an agent for {back_s - killed_s:.1f} s;"
        f" missing {len(missing)}, the first {killed_s - min(missing.values()):.2f} s before the kill;"
        f" counted: {missed:g} messages ({dropped} by the client itself), {killed:g} verdicts"
    )
    assert all(killed_s - LAST_MOMENT_S <= at <= back_s + LAST_MOMENT_S for at in missing.values())
    # AND those are counted, and the messages on requests that were not slow
    assert len(missing) <= missed + killed
    assert missed <= sum(killed_s - LAST_MOMENT_S <= float(at) <= back_s + LAST_MOMENT_S for _, at, _ in told)


def verdicts_of(received: Received) -> Counter[str]:
    """How many verdicts have come, by the span of their request."""
    found: Counter[str] = Counter()
    while not received.empty():
        request, _ = received.get()
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                found.update(s.parent_span_id.hex() for s in scope.spans if s.name == "tailspan.verdict")
    return found
