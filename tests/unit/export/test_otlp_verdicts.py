from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailspan.attribute.causes import Cause
from tailspan.export.otlp import outlets, verdicts
from tailspan.export.otlp.outlets import Outlets
from tailspan.export.otlp.transport import Accepted, Answer, Failed
from tailspan.export.otlp.verdicts import SUBMITTED, ExporterStats, VerdictExporter
from tailspan.export.tally import Tally
from tailspan.wire.otlp import Origin, Signal
from tests.builders import MS, sample_request, sample_step, sample_verdict
from tests.conftest import eventually

ENVIRON = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}
SPANS = 4  # of the sample verdict


class Backend:
    def __init__(self) -> None:
        self.answer: Answer = Accepted()
        self.requests: list[ExportTraceServiceRequest] = []

    def send(self, payload: bytes, is_json: bool) -> Answer:
        if isinstance(self.answer, Accepted):
            self.requests.append(ExportTraceServiceRequest.FromString(payload))
        return self.answer

    def close(self) -> None:
        pass


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend = Backend()
    monkeypatch.setattr(outlets, "open_transport", lambda signal, environ: backend)
    return backend


@pytest.fixture
def ways_out(backend: Backend, tmp_path: Path) -> Iterator[Outlets]:
    with closing(Outlets(ENVIRON, tmp_path / "otlp", 64 << 20)) as ways_out:
        yield ways_out


@pytest.fixture
def tally(tmp_path: Path) -> Iterator[Tally]:
    with closing(Tally(tmp_path / "tally")) as tally:
        yield tally


def _settled(exporter: VerdictExporter) -> ExporterStats:
    eventually(lambda: not exporter.stats().queued, "all is settled")
    return exporter.stats()


def test_a_submitted_verdict_arrives_and_is_counted(backend: Backend, ways_out: Outlets, tally: Tally) -> None:
    with closing(VerdictExporter(ways_out, "node-1", tally)) as exporter:
        exporter.submit(sample_verdict(), {"service.name": "triton"})
        eventually(lambda: exporter.stats().exported == 1, "it is exported")

    (resource_spans,) = backend.requests[0].resource_spans
    names = [span.name for span in resource_spans.scope_spans[0].spans]
    assert names == ["tailspan.verdict", "tailspan.futex", "tailspan.run_queue", "tailspan.on_cpu"]
    assert ways_out.stats()[Signal.TRACES].items == {Origin.OWN: SPANS}
    assert not exporter.stats().dropped


def test_a_burst_leaves_in_batches_and_none_is_lost(backend: Backend, ways_out: Outlets, tally: Tally) -> None:
    with closing(VerdictExporter(ways_out, "node-1", tally)) as exporter:
        for _ in range(101):
            exporter.submit(sample_verdict(), {})
        assert _settled(exporter) == ExporterStats(exported=101)
    assert 4 <= len(backend.requests) <= 8


def test_a_verdict_is_in_the_spool_soon_after_it_was_submitted(
    backend: Backend, ways_out: Outlets, tally: Tally
) -> None:
    backend.answer = Failed("unreachable")
    with closing(VerdictExporter(ways_out, "node-1", tally)) as exporter:
        before_s = time.monotonic()
        exporter.submit(sample_verdict(), {})
        eventually(lambda: ways_out.stats()[Signal.TRACES].queued_verdicts, "it is in the spool")
        assert time.monotonic() - before_s < 5  # 0.2 s on a host that is not busy
        eventually(lambda: exporter.stats() == ExporterStats(queued=1), "it is counted there alone")


def test_a_batch_of_many_bytes_is_split(backend: Backend, ways_out: Outlets, tally: Tally) -> None:
    # GIVEN verdicts of which six make more than a megabyte
    step = 9 * MS
    waterfall = tuple(
        sample_step((Cause.IO, Cause.FUTEX)[n % 2], n * step, (n + 1) * step, "x" * 4000) for n in range(45)
    )
    with closing(VerdictExporter(ways_out, "node-1", tally)) as exporter:
        for _ in range(32):
            exporter.submit(sample_verdict(waterfall=waterfall), {})
        assert _settled(exporter).exported == 32
    assert all(request.ByteSize() <= verdicts.BATCH_BYTES for request in backend.requests)
    assert sum(request.ByteSize() for request in backend.requests) > 4 << 20


def test_a_full_queue_drops_the_oldest_and_submit_does_not_wait(
    backend: Backend, ways_out: Outlets, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN an exporter that is stuck with one verdict, and has room for two
    gate, entered = threading.Event(), threading.Event()
    put = ways_out.put

    def stuck(*arguments: object, **more: object) -> None:
        entered.set()
        gate.wait(60)
        put(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ways_out, "put", stuck)
    with closing(VerdictExporter(ways_out, "node-1", tally, capacity=2)) as exporter:
        exporter.submit(sample_verdict(), {})
        assert entered.wait(60)

        # WHEN 23 more are submitted
        before_s = time.monotonic()
        for number in range(23):
            exporter.submit(sample_verdict(request=sample_request(name=f"r{number}", sampled=False)), {})
        took_s = time.monotonic() - before_s

        # THEN submit was quick, 21 are counted as dropped, and the newest two get through
        assert took_s < 5
        assert exporter.stats() == ExporterStats(dropped={verdicts.QUEUE_FULL: 21}, queued=3)  # type: ignore[arg-type]
        gate.set()
        eventually(lambda: exporter.stats().exported == 3, "three are exported")
    spans = [
        span.name
        for request in backend.requests
        for r in request.resource_spans
        for span in r.scope_spans[0].spans
    ]
    assert [name for name in spans if name.startswith("r")] == ["r21", "r22"]


def test_a_verdict_that_has_no_spans_costs_only_itself(ways_out: Outlets, tally: Tally) -> None:
    with closing(VerdictExporter(ways_out, "node-1", tally)) as exporter:
        exporter.submit(sample_verdict(), {})
        exporter.submit(sample_verdict(request=sample_request(trace_id="no hex")), {})
        exporter.submit(sample_verdict(request=sample_request(name="\ud800", sampled=False)), {})
        stats = _settled(exporter)
    assert stats.exported == 1
    assert stats.dropped == {verdicts.INVALID: 2}


def test_close_puts_what_is_queued_into_the_spool(backend: Backend, ways_out: Outlets, tally: Tally) -> None:
    backend.answer = Failed("unreachable")
    exporter = VerdictExporter(ways_out, "node-1", tally)
    for _ in range(101):
        exporter.submit(sample_verdict(), {})
    exporter.close(timeout_s=20)
    exporter.submit(sample_verdict(), {})
    assert exporter.stats() == ExporterStats(dropped={"shutdown": 1}, queued=101)  # type: ignore[arg-type]


def test_what_died_with_a_killed_agent_is_counted_once(ways_out: Outlets, tally: Tally) -> None:
    with closing(VerdictExporter(ways_out, "node-1", tally)) as exporter:
        for _ in range(5):
            exporter.submit(sample_verdict(), {})
        exporter.submit(sample_verdict(request=sample_request(trace_id="no hex")), {})
        _settled(exporter)
    tally.add(SUBMITTED, 23)  # and killed before they were in the spool

    for expected in ({"killed": 23}, {}):
        with closing(VerdictExporter(ways_out, "node-1", tally)) as exporter:
            assert exporter.stats().dropped == expected


def test_a_signal_without_an_endpoint_is_counted_and_makes_no_files(ways_out: Outlets, tmp_path: Path) -> None:
    ways_out.put(Signal.LOGS, b"", 23, Origin.FORWARDED)
    stats = ways_out.stats()
    assert stats[Signal.LOGS].dropped == {(Origin.FORWARDED, "no_endpoint"): 23}
    assert stats[Signal.LOGS].limit_bytes == 0
    assert not (tmp_path / "otlp").exists()


def test_what_is_put_after_the_end_is_counted(ways_out: Outlets) -> None:
    ways_out.close()
    ways_out.close()
    ways_out.put(Signal.TRACES, b"", 23, Origin.OWN)
    assert ways_out.stats()[Signal.TRACES].dropped == {(Origin.OWN, "shutdown"): 23}
