from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from tailspan.errors import UsageError
from tailspan.export import otlp
from tailspan.export.otlp import OtlpExporter
from tests.builders import sample_request, sample_verdict


class FakeTransport:
    """Stands for the official exporter. ``export`` waits while ``gate`` is closed, then gives ``result``."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.result: SpanExportResult | Exception = SpanExportResult.SUCCESS
        self.names: list[str] = []
        self.shut_down = False

    def export(self, spans: list[object]) -> SpanExportResult:
        self.entered.set()
        self.gate.wait()
        if isinstance(self.result, Exception):
            raise self.result
        self.names += [span.name for span in spans]
        return self.result

    def shutdown(self) -> None:
        self.shut_down = True


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTransport]:
    fake = FakeTransport()
    monkeypatch.setattr(otlp, "_official_exporter", lambda: fake)
    yield fake
    fake.gate.set()  # lets a thread that a test left waiting end


def _eventually(true: Callable[[], object], budget_s: float = 10.0) -> None:
    deadline = time.monotonic() + budget_s
    while not true():
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
    ],
)
def test_export_is_configured_only_by_an_endpoint(environ: dict[str, str], expected: bool) -> None:
    assert otlp.configured(environ) is expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
    ],
)
def test_a_wrong_variable_is_a_usage_error_that_shows_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=value):
        OtlpExporter("node-1")


def test_a_submitted_verdict_is_exported_and_counted(transport: FakeTransport) -> None:
    with closing(OtlpExporter("node-1")) as exporter:
        exporter.submit(sample_verdict(), {})
        _eventually(lambda: exporter.stats().exported == 1)

    assert transport.names == ["tailspan.verdict", "tailspan.futex", "tailspan.run_queue", "tailspan.on_cpu"]
    assert exporter.stats().spans == 4
    assert not exporter.stats().dropped


def test_a_full_queue_drops_the_oldest_and_submit_does_not_wait(transport: FakeTransport) -> None:
    # GIVEN a backend that hangs with one verdict on the wire, and a full queue of two
    transport.gate.clear()
    with closing(OtlpExporter("node-1", capacity=2)) as exporter:
        exporter.submit(sample_verdict(), {})
        assert transport.entered.wait(10)

        # WHEN 23 more are submitted
        before = time.monotonic()
        for number in range(23):
            request = sample_request(name=f"r{number}", sampled=False)
            exporter.submit(sample_verdict(request=request), {})
        took_s = time.monotonic() - before

        # THEN submit was quick, 21 are counted as dropped, and the newest two get through
        stats = exporter.stats()
        assert took_s < 0.5
        assert stats.dropped == {otlp.QUEUE_FULL: 21}
        assert stats.queued == 3
        transport.gate.set()
        _eventually(lambda: exporter.stats().exported == 3)
    assert [name for name in transport.names if name.startswith("r")] == ["r21", "r22"]


@pytest.mark.parametrize("result", [SpanExportResult.FAILURE, ValueError("channel closed")])
def test_a_failed_export_is_counted_and_the_next_one_is_tried(
    transport: FakeTransport, result: SpanExportResult | Exception
) -> None:
    transport.result = result
    with closing(OtlpExporter("node-1")) as exporter:
        exporter.submit(sample_verdict(), {})
        _eventually(lambda: exporter.stats().dropped == {otlp.EXPORT_FAILED: 1})

        transport.result = SpanExportResult.SUCCESS
        exporter.submit(sample_verdict(), {})
        _eventually(lambda: exporter.stats().exported == 1)


def test_a_verdict_that_has_no_spans_costs_only_itself(transport: FakeTransport) -> None:
    transport.gate.clear()
    with closing(OtlpExporter("node-1")) as exporter:
        exporter.submit(sample_verdict(), {})
        assert transport.entered.wait(10)
        exporter.submit(sample_verdict(request=sample_request(trace_id="no hex")), {})
        exporter.submit(sample_verdict(), {})
        transport.gate.set()
        _eventually(lambda: not exporter.stats().queued)

        assert exporter.stats().exported == 2
        assert exporter.stats().dropped == {otlp.INVALID: 1}


def test_close_delivers_what_is_queued(transport: FakeTransport) -> None:
    exporter = OtlpExporter("node-1")
    for _ in range(100):
        exporter.submit(sample_verdict(), {})
    exporter.close()

    assert exporter.stats().exported == 100
    assert transport.shut_down


def test_close_keeps_its_budget_when_the_transport_hangs_and_counts_what_is_lost(
    transport: FakeTransport,
) -> None:
    # GIVEN one verdict on the wire for ever and 22 behind it
    transport.gate.clear()
    exporter = OtlpExporter("node-1")
    for _ in range(23):
        exporter.submit(sample_verdict(), {})
    assert transport.entered.wait(10)

    # WHEN it is closed with half a second
    before = time.monotonic()
    exporter.close(timeout_s=0.5)

    # THEN it returns, and all 23 are counted, once
    assert time.monotonic() - before < 1.0
    assert exporter.stats().dropped == {otlp.SHUTDOWN: 23}
    transport.gate.set()
    _eventually(lambda: "tailspan-otlp" not in {thread.name for thread in threading.enumerate()})
    assert exporter.stats().dropped == {otlp.SHUTDOWN: 23}
    assert exporter.stats().exported == exporter.stats().queued == 0


def test_what_is_submitted_after_close_is_counted(transport: FakeTransport) -> None:
    exporter = OtlpExporter("node-1")
    exporter.close()
    exporter.close()
    exporter.submit(sample_verdict(), {})
    assert exporter.stats().dropped == {otlp.SHUTDOWN: 1}


def test_importing_the_module_loads_neither_grpc_nor_the_sdk() -> None:
    code = (
        "import sys; before = set(sys.modules); import tailspan.export.otlp;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    environ = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert not {"grpc", "opentelemetry", "google"} & set(done.stdout.split())
