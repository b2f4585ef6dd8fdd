from __future__ import annotations

import base64
import json
import subprocess
import sys
from email.utils import formatdate
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailspan.errors import UsageError
from tailspan.export.otlp import configured
from tailspan.export.otlp.over_http import _retry_after_s
from tailspan.export.otlp.transport import SERVICES, Accepted, open_transport
from tailspan.wire.otlp import Signal, parse_json


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, set()),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, set(Signal)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, {Signal.TRACES}),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:4318/v1/logs"}, {Signal.LOGS}),
    ],
)
def test_export_is_configured_only_by_an_endpoint(environ: dict[str, str], expected: set[Signal]) -> None:
    assert {signal for signal in Signal if configured(environ, signal)} == expected
    assert configured(environ) is (Signal.TRACES in expected)


@pytest.mark.parametrize("signal", Signal)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/absent/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/absent/key.pem"),
    ],
)
def test_a_wrong_variable_is_a_usage_error_that_shows_its_value(
    monkeypatch: pytest.MonkeyPatch, signal: Signal, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=value):
        open_transport(signal, {name: value})


def test_an_endpoint_without_a_scheme_is_a_usage_error_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")
    with pytest.raises(UsageError, match="collector:4318"):
        open_transport(Signal.TRACES, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})


@pytest.mark.parametrize("signal", Signal)
def test_an_answer_is_a_response_of_the_signal_or_none_at_all(signal: Signal) -> None:
    service = SERVICES[signal]
    assert service.accepted(b"") == service.accepted(b"", True) == service.accepted(b"{}", True) == Accepted()
    for page in (b"<html>log in</html>", b"OK\n", b"{}", b'{"status": "ok"}'):
        assert service.accepted(page) is None
    for page in (b"<html>", b"[]", b"\xff", b'{"partialSuccess": 23}', b"[" * 100_000):
        assert service.accepted(page, True) is None


@given(st.binary(max_size=200), st.booleans())
def test_no_answer_raises(body: bytes, is_json: bool) -> None:
    SERVICES[Signal.TRACES].accepted(body, is_json)


def test_what_was_rejected_is_read_in_both_encodings() -> None:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = 23
    response.partial_success.error_message = "too old"
    as_json = json.dumps({"partialSuccess": {"rejectedDataPoints": "23", "errorMessage": "too old"}, "more": 1})

    service = SERVICES[Signal.METRICS]
    assert service.accepted(response.SerializeToString()) == Accepted(23, "too old")
    assert service.accepted(as_json.encode(), True) == Accepted(23, "too old")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("23", 23.0), ("0.5", 0.5), ("-3", 0.0), ("inf", None), ("soon", None), ("", None)],
)
def test_retry_after_in_seconds(value: str | None, expected: float | None) -> None:
    assert _retry_after_s(value) == expected


def test_retry_after_as_a_date() -> None:
    assert _retry_after_s(formatdate(time() + 100, usegmt=True)) == pytest.approx(100, abs=20)
    assert _retry_after_s(formatdate(time() - 100, usegmt=True)) == 0


def test_json_has_its_ids_in_hex() -> None:
    sent = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "5B8EFFF798038103D269B633813FC60C",
                                "spanId": "eee19b7ec3c1b174",
                                "parentSpanId": "eee19b7ec3c1b173",
                                "name": "infer",
                                "kind": 2,
                                "startTimeUnixNano": "1544712660000000000",
                                "endTimeUnixNano": 1544712661000000000,
                                "links": [{"traceId": "00" * 16, "spanId": "11" * 8}],
                                "attributes": [{"key": "traceId", "value": {"stringValue": "no hex"}}],
                                "of a later version": {},
                            }
                        ]
                    }
                ]
            }
        ]
    }
    request = ExportTraceServiceRequest()
    parse_json(json.dumps(sent).encode(), request)

    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert (span.span_id.hex(), span.parent_span_id.hex()) == ("eee19b7ec3c1b174", "eee19b7ec3c1b173")
    assert (span.name, span.kind) == ("infer", 2)
    assert span.end_time_unix_nano - span.start_time_unix_nano == 10**9
    assert span.links[0].span_id == b"\x11" * 8
    assert span.attributes[0].value.string_value == "no hex"


def test_bytes_in_json_stay_in_base64() -> None:
    value = {"bytesValue": base64.b64encode(b"\x00\xff").decode()}
    sent = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": value, "traceId": "ab" * 16}]}]}]}
    request = ExportLogsServiceRequest()
    parse_json(json.dumps(sent).encode(), request)
    (record,) = request.resource_logs[0].scope_logs[0].log_records
    assert (record.body.bytes_value, record.trace_id) == (b"\x00\xff", b"\xab" * 16)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"23", b"\xff", b"[" * 100_000, b'{"resourceSpans": 23}'),
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "no hex"}]}]}]}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_no_otlp_in_json_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(body, ExportTraceServiceRequest())


_NAMES = ["resourceSpans", "scopeSpans", "spans", "traceId", "attributes", "key", "value", "x"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["resourceSpans", "scopeSpans", "spans", "traceId", "attributes", "key", "value", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_foreign_json_is_parsed_or_a_value_error(value: object) -> None:
    try:
        parse_json(json.dumps(value).encode(), ExportTraceServiceRequest())
    except ValueError:
        return


def test_importing_the_package_loads_neither_grpc_nor_the_sdk() -> None:
    code = (
        "import sys; before = set(sys.modules); import tailspan.export.otlp;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    environ = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert not {"grpc", "opentelemetry", "google", "requests"} & set(done.stdout.split())
