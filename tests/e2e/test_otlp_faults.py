"""What leaves by OTLP, and backends, disks and processes that fail: it arrives, or it is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tailspan.export.otlp import Outlets, OutletStats
from tailspan.wire.otlp import Origin, Signal
from tests.conftest import eventually
from tests.e2e.backends import (
    BACKENDS,
    Backend,
    Certificates,
    Reply,
    grpc_backend,
    refusing,
    silent,
    slow,
    traces,
)

MIB = 1 << 20


@pytest.fixture(params=BACKENDS)
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    name: str = request.param
    return name


@contextmanager
def _sending(
    endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int = 64 * MIB
) -> Iterator[Outlets]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with closing(Outlets(os.environ, folder / "otlp", max_bytes)) as outlets:
        yield outlets


def _stats(outlets: Outlets) -> OutletStats:
    return outlets.stats()[Signal.TRACES]


def _delivered(outlets: Outlets, items: int, seconds: float = 30.0) -> None:
    eventually(lambda: _stats(outlets).items.total() == items, f"{items} are delivered", seconds)


# --- what is sent -------------------------------------------------------------------------------------------


def test_what_is_forwarded_arrives_byte_by_byte(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN payloads as nobody here would encode them: fields of a later version
    payloads = {signal: b"\xfa\x3f\x03" + signal.encode()[:3] for signal in Signal}
    backend = Backend()
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        # WHEN one of each signal is forwarded
        for name, payload in payloads.items():
            outlets.put(name, payload, 23, Origin.FORWARDED)
            eventually(lambda: backend.taken[-1:] == [payload], "it arrives")  # noqa: B023
        eventually(
            lambda: all(stats.items == {Origin.FORWARDED: 23} for stats in outlets.stats().values()),
            "all are counted",
        )

    # THEN each goes where its signal goes
    if protocol == "grpc":
        assert [path.split(".")[3] for path in backend.paths] == ["trace", "metrics", "logs"]
    else:
        assert backend.paths == ["/v1/traces", "/v1/metrics", "/v1/logs"]
        assert set(backend.types) == {"application/x-protobuf"}


def test_json_is_posted_as_it_is_and_made_protobuf_for_grpc(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_id = "5b8efff798038103d269b633813fc60c"
    record = '{"traceId": "%s", "severityText": "WARN", "later": 1}' % trace_id  # noqa: UP031
    payload = f'{{"resourceLogs": [{{"scopeLogs": [{{"logRecords": [{record}]}}]}}]}}'.encode()
    backend = Backend()
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        outlets.put(Signal.LOGS, b"no json", 5, Origin.FORWARDED, is_json=protocol == "grpc")
        outlets.put(Signal.LOGS, payload, 1, Origin.FORWARDED, is_json=True)
        eventually(lambda: payload in backend.taken or protocol == "grpc", "it arrives")
        eventually(lambda: not outlets.stats()[Signal.LOGS].queued_items, "all is settled")
        dropped = outlets.stats()[Signal.LOGS].dropped

    if protocol == "grpc":
        assert dropped == {(Origin.FORWARDED, "refused"): 5}
        (resource,) = ExportLogsServiceRequest.FromString(backend.taken[0]).resource_logs
        (sent,) = resource.scope_logs[0].log_records
        assert (sent.trace_id.hex(), sent.severity_text) == (trace_id, "WARN")
    else:
        assert backend.types == ["application/x-protobuf", "application/json"]


# --- backends that fail -------------------------------------------------------------------------------------


PORTAL = Reply(b"<html>please log in</html>", headers={"Content-Type": "text/html"})
GARBAGE = {
    "grpc": [Reply(b"<html>")],
    "http/protobuf": [
        PORTAL,
        Reply(status=302, headers={"Location": "http://127.0.0.1:1/login"}),
        Reply(b"x" * MIB),
    ],
}


def test_a_backend_that_answers_garbage_is_tried_again(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(list(GARBAGE[protocol]))
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        outlets.put(Signal.TRACES, traces(1), 1, Origin.OWN)
        _delivered(outlets, 1)
        assert _stats(outlets).failures == {"garbage": len(GARBAGE[protocol])}
    assert backend.taken == [traces(1)]


@pytest.mark.parametrize("dead", [refusing, silent, slow])
def test_a_dead_backend_holds_up_neither_put_nor_close_and_the_next_start_delivers(
    protocol: str, dead: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [traces(n, size=100_000) for n in range(23)]
    with dead() as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:  # type: ignore[attr-defined]
        # WHEN 2 MB are put, and it is closed while the first is on its way
        before_s = time.monotonic()
        for payload in sent:
            outlets.put(Signal.TRACES, payload, 1, Origin.OWN, verdicts=1)
        put_s = time.monotonic() - before_s
        outlets.close()
        closed_s = time.monotonic() - before_s - put_s

        # THEN neither took long, and all are kept
        assert put_s < 5
        assert closed_s < 6
        stats = _stats(outlets)
        assert (stats.queued_items, stats.queued_verdicts, stats.dropped) == (23, 23, Counter())

    # AND the next start delivers them
    backend = Backend()
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        _delivered(outlets, 23)
    assert backend.taken == sent


def test_a_backend_that_is_too_slow_is_a_failure_and_not_the_end(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with slow() as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        outlets.put(Signal.TRACES, traces(1, size=8 * MIB), 1, Origin.OWN)
        eventually(lambda: _stats(outlets).failures, "it is noticed")
        assert set(_stats(outlets).failures) <= {"timeout", "unreachable"}
        assert _stats(outlets).queued_items == 1


def test_what_the_backend_refuses_is_counted_and_the_next_delivered(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend([Reply(status=400)])
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        outlets.put(Signal.TRACES, traces(1), 23, Origin.FORWARDED)
        outlets.put(Signal.TRACES, traces(2), 5, Origin.OWN)
        _delivered(outlets, 5)
        assert _stats(outlets).dropped == {(Origin.FORWARDED, "refused"): 23}
    assert backend.taken == [traces(2)]


def test_of_a_partial_success_the_rejected_spans_are_counted(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 3
    response.partial_success.error_message = "too old"
    backend = Backend([Reply(response.SerializeToString())])
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        outlets.put(Signal.TRACES, traces(1), 23, Origin.OWN)
        _delivered(outlets, 20)
        assert _stats(outlets).dropped == {(Origin.OWN, "rejected"): 3}
        assert not _stats(outlets).failures


def _overloaded(protocol: str, seconds: int) -> Reply:
    if protocol != "grpc":
        return Reply(status=429, headers={"Retry-After": f"{seconds}"})
    info, detail = RetryInfo(), Any()
    info.retry_delay.seconds = seconds
    detail.Pack(info)
    status = Status(code=8, message="full", details=[detail]).SerializeToString()
    return Reply(code=grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=(("grpc-status-details-bin", status),))


def test_an_overloaded_backend_is_left_alone_as_long_as_it_asks(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend([_overloaded(protocol, 3)])
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        outlets.put(Signal.TRACES, traces(1), 1, Origin.OWN)
        _delivered(outlets, 1)
        assert _stats(outlets).failures.total() == 1
    first_s, second_s = backend.times_s
    assert second_s - first_s >= 3


def test_exhausted_without_a_time_to_come_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend([Reply(code=grpc.StatusCode.RESOURCE_EXHAUSTED)])
    with grpc_backend(backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch) as outlets:
        outlets.put(Signal.TRACES, traces(1), 1, Origin.OWN)
        eventually(lambda: _stats(outlets).dropped == {(Origin.OWN, "refused"): 1}, "it is counted")


# --- certificates -------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    made = Certificates(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(made.ca))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(made.client_key))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(made.client))
    return made


def test_both_sides_show_their_certificates(
    protocol: str, tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend()
    with (
        BACKENDS[protocol](backend, certificates=certificates) as endpoint,
        _sending(endpoint, tmp_path, monkeypatch) as outlets,
    ):
        outlets.put(Signal.TRACES, traces(1), 1, Origin.OWN)
        _delivered(outlets, 1)
        assert not _stats(outlets).failures


def test_an_expired_certificate_is_a_failure_until_it_is_renewed(
    protocol: str, tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend()
    certificates.expire()
    with BACKENDS[protocol](backend, certificates=certificates) as endpoint:
        port = int(endpoint.rpartition(":")[2])
        with _sending(endpoint, tmp_path, monkeypatch) as outlets:
            outlets.put(Signal.TRACES, traces(1), 1, Origin.OWN)
            eventually(lambda: _stats(outlets).failures["tls"], "it is noticed")
            assert _stats(outlets).queued_items == 1
    assert not backend.taken

    renewed = Certificates(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(renewed.ca))
    with (
        BACKENDS[protocol](backend, port, renewed) as endpoint,
        _sending(endpoint, tmp_path, monkeypatch) as outlets,
    ):
        _delivered(outlets, 1)


# --- disks and processes that fail --------------------------------------------------------------------------


def test_a_full_spool_drops_the_oldest_and_counts_them(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing() as endpoint, _sending(endpoint, tmp_path, monkeypatch, MIB) as outlets:
        for n in range(101):
            outlets.put(Signal.TRACES, traces(n, size=30_000), 1, Origin.OWN, verdicts=1)
        dropped = _stats(outlets).dropped[Origin.OWN, "spool_full"]
        assert _stats(outlets).dropped_verdicts == {"spool_full": dropped}
        assert _stats(outlets).queued_items == 101 - dropped
        assert _stats(outlets).queued_bytes <= _stats(outlets).limit_bytes == MIB

    backend = Backend()
    with BACKENDS[protocol](backend) as endpoint, _sending(endpoint, tmp_path, monkeypatch, MIB) as outlets:
        _delivered(outlets, 101 - dropped)
    assert {traces(n, size=30_000) for n in range(81, 101)} <= set(backend.taken)
    assert len(set(backend.taken)) == 101 - dropped


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tailspan-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_what_a_full_disk_does_not_take_waits_in_memory(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a backend that is away, and a disk for some thirty batches
    sent = [traces(n, size=10_000) for n in range(101)]
    backend = Backend()
    with grpc_backend(backend) as endpoint:
        port = int(endpoint.rpartition(":")[2])
    with _sending(endpoint, small_disk, monkeypatch) as outlets:
        # WHEN a hundred come
        for payload in sent:
            outlets.put(Signal.TRACES, payload, 1, Origin.OWN)
        assert not _stats(outlets).dropped
        assert _stats(outlets).queued_bytes >= sum(len(payload) for payload in sent)

        # THEN all arrive when the backend is there, in order
        with grpc_backend(backend, port):
            _delivered(outlets, 101, 60)
    assert backend.taken == sent


def test_a_full_disk_and_a_full_memory_are_counted(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as endpoint, _sending(endpoint, small_disk, monkeypatch) as outlets:
        for n in range(101):
            outlets.put(Signal.TRACES, traces(n, size=100_000), 1, Origin.OWN)
        dropped = _stats(outlets).dropped
        assert set(dropped) == {(Origin.OWN, "enospc")}
        assert _stats(outlets).queued_items == 101 - dropped.total()
        assert 8 * MIB < _stats(outlets).queued_bytes + 100_100 < 9 * MIB


AGENT = """
import os, sys, time
from pathlib import Path
from tailspan.export.otlp import Outlets, VerdictExporter
from tailspan.export.tally import Tally
from tailspan.wire.otlp import Origin, Signal
from tests.builders import sample_request, sample_verdict
folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
outlets, tally = Outlets(os.environ, folder / "otlp", 1 << 26), Tally(folder / "tally")
exporter = VerdictExporter(outlets, "node-1", tally)
print(exporter.stats().dropped["killed"], flush=True)
for n in range(first, first + count):
    exporter.submit(sample_verdict(request=sample_request(trace_id=f"{n:032x}")), {})
    outlets.put(Signal.LOGS, b"%d" % n, 1, Origin.FORWARDED)
    print(n, flush=True)
    time.sleep(0.003)
while exporter.stats().queued or any(stats.queued_items for stats in outlets.stats().values()):
    time.sleep(0.01)
print(tally.get("verdicts.submitted"), flush=True)
"""


@contextmanager
def _agent(folder: Path, first: int, count: int) -> Iterator[Iterator[int]]:
    """The numbers that it says: what was killed before it, each that it has put, how many there ever were.

    It is killed at the end.
    """
    command = [sys.executable, "-c", AGENT, str(folder), str(first), str(count)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert child.stdout is not None
    try:
        yield (int(line) for line in child.stdout if line.endswith("\n"))
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_of_a_killed_agent_all_that_was_put_arrives_and_each_verdict_arrives_or_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, lives = Backend(), 4
    killed = put = 0
    with grpc_backend(backend) as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        # GIVEN agents that are killed while they put and submit, each after the one before
        for life in range(1, lives + 1):
            with _agent(tmp_path, put + 1, 100_000) as said:
                killed += next(said)
                while put < life * 101:
                    put = next(said)

        # WHEN one more delivers what they have left
        with _agent(tmp_path, 0, 0) as said:
            killed += next(said)
            submitted = next(said)

    # THEN what was put has arrived, in order where it came once
    logs = [int(payload) for payload, path in zip(backend.taken, backend.paths, strict=True) if "Logs" in path]
    assert set(range(1, put + 1)) <= set(logs)
    assert sorted(set(logs)) == list(dict.fromkeys(logs))

    # AND each verdict has arrived or is counted. At a kill one batch may be on its way, and come twice
    told = [payload for payload, path in zip(backend.taken, backend.paths, strict=True) if "Trace" in path]
    arrived = [span.trace_id for payload in told for span in _spans(payload) if span.name == "tailspan.verdict"]
    assert submitted >= put
    assert submitted - killed <= len(set(arrived)) <= submitted
    assert len(arrived) - len(set(arrived)) <= lives * 32
    assert killed <= lives * 200  # half a second of them


def _spans(payload: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(payload)
    return [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
