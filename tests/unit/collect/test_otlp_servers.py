"""Both servers over real connections: what they take is forwarded as it came, the rest is refused, harmlessly."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailspan.collect.otlp import http_server, intake
from tailspan.collect.otlp.decode import MAX_BODY_BYTES
from tailspan.collect.otlp.server import OtlpReceiver
from tailspan.errors import CannotError, MessageError
from tailspan.timeline.inbox import Received
from tailspan.wire.otlp import Signal
from tailspan.wire.spans import Hello, Request
from tests.conftest import eventually
from tests.unit.collect.otlp_messages import as_json, attribute, logs, metrics, span, traces
from tests.workloads import program

PROTOBUF, JSON = "application/x-protobuf", "application/json"
SERVICES = {
    Signal.TRACES: "opentelemetry.proto.collector.trace.v1.TraceService",
    Signal.METRICS: "opentelemetry.proto.collector.metrics.v1.MetricsService",
    Signal.LOGS: "opentelemetry.proto.collector.logs.v1.LogsService",
}
#: Until a minute ago, for a second.
RECENT = {
    "start_time_unix_nano": time.time_ns() - 60_000_000_000,
    "end_time_unix_nano": time.time_ns() - 59_000_000_000,
}
SOME = traces(span(1, attributes={"note": "x" * 300}, **RECENT), resource={"service.name": "triton"})
MESSAGES = {Signal.TRACES: SOME, Signal.METRICS: metrics(23), Signal.LOGS: logs(5)}
ITEMS = {Signal.TRACES: 1, Signal.METRICS: 23, Signal.LOGS: 5}

Forwarded = list[tuple[Signal, bytes, int, bool]]


@pytest.fixture
def forwarded() -> Forwarded:
    return []


@pytest.fixture
def open_receiver(forwarded: Forwarded) -> Iterator[Callable[..., OtlpReceiver]]:
    opened: list[OtlpReceiver] = []

    def open_with(**options: object) -> OtlpReceiver:
        def forward(signal: Signal, body: bytes, items: int, is_json: bool) -> None:
            forwarded.append((signal, body, items, is_json))

        opened.append(OtlpReceiver("127.0.0.1:0", "127.0.0.1:0", forward, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_with
    for one in opened:
        one.close()


@pytest.fixture
def receiver(open_receiver: Callable[..., OtlpReceiver]) -> OtlpReceiver:
    return open_receiver()


def post(
    receiver: OtlpReceiver,
    path: str,
    body: bytes,
    kind: str | None = PROTOBUF,
    method: str = "POST",
    **headers: str,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.http_port, timeout=20)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given | ({"Content-Type": kind} if kind else {}))
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def call(
    receiver: OtlpReceiver, signal: Signal, body: bytes, compression: grpc.Compression | None = None
) -> tuple[grpc.StatusCode, bytes | str]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{receiver.grpc_port}", options) as channel:
        try:
            export = channel.unary_unary(f"/{SERVICES[signal]}/Export")
            return grpc.StatusCode.OK, export(body, timeout=20, compression=compression)
        except grpc.RpcError as error:
            return error.code(), error.details()


def refused(receiver: OtlpReceiver) -> dict[str, int]:
    """But for what says that a connection of this test is gone by the time that it is asked about."""
    return {reason: count for reason, count in receiver.refused.items() if reason != "unknown_sender"}


@pytest.mark.parametrize("signal", Signal)
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_grpc_forwards_what_came(
    receiver: OtlpReceiver, forwarded: Forwarded, signal: Signal, compression: grpc.Compression | None
) -> None:
    body = MESSAGES[signal].SerializeToString()
    assert call(receiver, signal, body, compression) == (grpc.StatusCode.OK, b"")
    assert forwarded == [(signal, body, ITEMS[signal], False)]
    assert receiver.received == {signal: ITEMS[signal]}
    assert refused(receiver) == {}


@pytest.mark.parametrize("signal", Signal)
@pytest.mark.parametrize("packed", [False, True])
def test_http_forwards_what_came(
    receiver: OtlpReceiver, forwarded: Forwarded, signal: Signal, packed: bool
) -> None:
    body = MESSAGES[signal].SerializeToString()
    sent, headers = (gzip.compress(body), {"Content_Encoding": "gzip"}) if packed else (body, {})
    status, answer, told = post(receiver, f"/v1/{signal}", sent, **headers)
    assert (status, answer, told["Content-Type"]) == (200, b"", PROTOBUF)
    assert forwarded == [(signal, body, ITEMS[signal], False)]
    assert receiver.received == {signal: ITEMS[signal]}


def test_json_is_forwarded_as_it_came_and_joined(receiver: OtlpReceiver, forwarded: Forwarded) -> None:
    body = as_json(SOME)
    status, answer, told = post(receiver, "/v1/traces?x=1", body, "application/json; charset=utf-8")
    assert (status, answer, told["Content-Type"]) == (200, b"{}", JSON)
    assert forwarded == [(Signal.TRACES, body, 1, True)]
    assert [type(received.message) for received in receiver.read()] == [Hello, Request]


def test_chunks_are_put_together(receiver: OtlpReceiver, forwarded: Forwarded) -> None:
    body = SOME.SerializeToString()
    packed = gzip.compress(body)
    connection = http.client.HTTPConnection("127.0.0.1", receiver.http_port, timeout=20)
    headers = {"Content-Type": PROTOBUF, "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
    for _ in range(2):  # on one connection
        parts = (packed[at : at + 23] for at in range(0, len(packed), 23))
        connection.request("POST", "/v1/traces", parts, headers, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    connection.close()
    assert forwarded == [(Signal.TRACES, body, 1, False)] * 2


@pytest.mark.parametrize(
    ("path", "body", "kind", "method", "headers", "status", "reason"),
    [
        ("/v1/traces", b"\xff", PROTOBUF, "POST", {}, 400, "malformed"),
        ("/v1/traces", b"{", JSON, "POST", {}, 400, "malformed"),
        ("/v1/logs", b"no gzip", PROTOBUF, "POST", {"Content_Encoding": "gzip"}, 400, "malformed"),
        (
            "/v1/logs",
            gzip.compress(b"x" * 1000)[:-9],
            PROTOBUF,
            "POST",
            {"Content_Encoding": "gzip"},
            400,
            "malformed",
        ),
        ("/v1/logs", gzip.compress(b"") * 9, PROTOBUF, "POST", {"Content_Encoding": "gzip"}, 400, "malformed"),
        ("/v1/logs", b"", PROTOBUF, "POST", {"Content_Length": "ten"}, 400, "malformed"),
        ("/v1/logs", b"", PROTOBUF, "POST", {"Content_Encoding": "br"}, 415, "unsupported"),
        ("/v1/traces", b"", "text/plain", "POST", {}, 415, "unsupported"),
        ("/v1/traces", b"", None, "POST", {}, 415, "unsupported"),
        ("/v1/profiles", b"", PROTOBUF, "POST", {}, 404, "no_such_path"),
        ("/", b"", None, "GET", {}, 404, "no_such_path"),
        ("/v1/traces", b"", None, "GET", {}, 405, "no_such_method"),
        ("/v1/traces", b"", PROTOBUF, "PUT", {}, 405, "no_such_method"),
        ("/v1/traces", b"", PROTOBUF, "BREW", {}, 501, "malformed"),
        ("/v1/traces", bytes(MAX_BODY_BYTES + 1), PROTOBUF, "POST", {}, 413, "oversized"),
        (
            "/v1/traces",
            gzip.compress(bytes(MAX_BODY_BYTES + 1)),
            PROTOBUF,
            "POST",
            {"Content_Encoding": "gzip"},
            413,
            "oversized",
        ),
        ("/v1/traces", b"\x0a\x00" * 100_000, PROTOBUF, "POST", {}, 413, "too_many_parts"),
    ],
)
def test_http_refuses_with_a_status_in_the_senders_encoding(
    receiver: OtlpReceiver,
    forwarded: Forwarded,
    path: str,
    body: bytes,
    kind: str | None,
    method: str,
    headers: dict[str, str],
    status: int,
    reason: str,
) -> None:
    found, answer, told = post(receiver, path, body, kind, method, **headers)
    assert found == status
    if kind == PROTOBUF:
        said = Status.FromString(answer)
        assert told["Content-Type"] == PROTOBUF
        assert said.code
        assert said.message
    else:
        assert told["Content-Type"] == JSON
        assert set(json.loads(answer)) == {"code", "message"}
    assert told["Allow"] == ("POST" if status == 405 else None)
    assert refused(receiver) == {reason: 1}
    assert forwarded == []
    # and it goes on
    assert post(receiver, "/v1/logs", logs(1).SerializeToString())[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/x-protobuf\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/x-protobuf\r\nContent-Length: 9\r\n\r\nabc",
        b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\n{}}\r\n0\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"ffffffff\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/traces\r\n\r\n",
        b"POST /v1/traces HTTP/0.9\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_no_request_of_http_is_refused(receiver: OtlpReceiver, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert sum(refused(receiver).values()) == 1
    assert post(receiver, "/v1/logs", logs(1).SerializeToString())[0] == 200


def test_a_sender_that_trickles_is_cut_off(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MESSAGE_S", 0.5)
    head = b"POST /v1/logs HTTP/1.1\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20) as connection:
        connection.sendall(head)
        connection.settimeout(0.05)
        answer = b""
        deadline = time.monotonic() + 20
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"x")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert refused(receiver) == {"slow": 1}


def test_more_messages_than_are_read_at_a_time_are_told_to_come_again(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "WAIT_FOR_TURN_S", 0.1)
    head = b"POST /v1/logs HTTP/1.1\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1000\r\n\r\n"
    slow = [
        socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20)
        for _ in range(http_server.MAX_MESSAGES)
    ]
    for connection in slow:
        connection.sendall(head)

    def busy() -> bool:
        status, _, told = post(receiver, "/v1/logs", logs(1).SerializeToString())
        return status == 503 and told["Retry-After"] == "1"

    eventually(busy, "all turns are taken")
    for connection in slow:
        connection.close()
    eventually(lambda: post(receiver, "/v1/logs", logs(1).SerializeToString())[0] == 200, "turns are free again")


def test_connections_are_bounded(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)
    idle = [socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20) for _ in range(3)]
    with socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20) as fourth:
        assert fourth.recv(1) == b""
    assert refused(receiver) == {"too_many_connections": 1}
    for connection in idle:
        connection.close()

    def served() -> bool:
        try:
            return post(receiver, "/v1/logs", logs(1).SerializeToString())[0] == 200
        except OSError:
            return False

    eventually(served, "there is room again")


def test_a_connection_that_gets_no_thread_is_closed_and_counted(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20) as connection:
            assert connection.recv(1) == b""
    assert refused(receiver) == {"too_many_connections": 1}
    assert post(receiver, "/v1/logs", logs(1).SerializeToString())[0] == 200


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"\xff", grpc.StatusCode.INVALID_ARGUMENT, "malformed"),
        (bytes(MAX_BODY_BYTES + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "oversized"),
        (b"\x0a\x00" * 100_000, grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_parts"),
    ],
)
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_grpc_refuses_by_code(
    receiver: OtlpReceiver,
    forwarded: Forwarded,
    body: bytes,
    code: grpc.StatusCode,
    reason: str,
    compression: grpc.Compression | None,
) -> None:
    found, said = call(receiver, Signal.TRACES, body, compression)
    assert found is code
    assert str(said).startswith(f"{reason}: ")
    assert refused(receiver) == {reason: 1}
    assert forwarded == []
    assert call(receiver, Signal.LOGS, logs(1).SerializeToString())[0] is grpc.StatusCode.OK


def test_grpc_unpacks_no_bomb(receiver: OtlpReceiver) -> None:
    code, _ = call(receiver, Signal.TRACES, bytes(64 << 20), grpc.Compression.Gzip)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(receiver, Signal.LOGS, logs(1).SerializeToString())[0] is grpc.StatusCode.OK


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.sampled_from(Signal), st.binary(max_size=200), st.sampled_from([PROTOBUF, JSON]))
def test_any_bytes_are_accepted_or_refused_and_it_goes_on(
    receiver: OtlpReceiver, signal: Signal, body: bytes, kind: str
) -> None:
    assert post(receiver, f"/v1/{signal}", body, kind)[0] in (200, 400)
    assert call(receiver, signal, body)[0] in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
    receiver.read()
    assert "failed" not in receiver.refused


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_on_the_line_are_survived(receiver: OtlpReceiver, noise: bytes) -> None:
    for port in (receiver.http_port, receiver.grpc_port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(noise)
    assert post(receiver, "/v1/logs", logs(1).SerializeToString())[0] == 200
    assert "failed" not in receiver.refused


def test_an_address_that_another_has_is_said(receiver: OtlpReceiver) -> None:
    for taken in ({"grpc": f"127.0.0.1:{receiver.grpc_port}"}, {"http": f"127.0.0.1:{receiver.http_port}"}):
        with pytest.raises(
            CannotError, match=r"cannot take OTLP on 127.0.0.1:\d+: Address already in use; choose"
        ):
            OtlpReceiver(**{"grpc": "", "http": ""} | taken, forward=lambda *_: None)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:99999", ":4317", "no.such.host.invalid:1", "127.0.0.1:x"]
)
@pytest.mark.parametrize("server", ["grpc", "http"])
def test_an_address_that_is_none_is_said(server: str, address: str) -> None:
    with pytest.raises(CannotError, match="cannot take OTLP on"):
        OtlpReceiver(**{"grpc": "", "http": ""} | {server: address}, forward=lambda *_: None)


def test_ipv6_is_served(forwarded: Forwarded) -> None:
    receiver = OtlpReceiver("[::1]:0", "[::1]:0", lambda *message: forwarded.append(message))
    try:
        body = SOME.SerializeToString()
        connection = http.client.HTTPConnection("::1", receiver.http_port, timeout=20)
        connection.request("POST", "/v1/traces", body, {"Content-Type": PROTOBUF})
        assert connection.getresponse().read() == b""
        with grpc.insecure_channel(f"[::1]:{receiver.grpc_port}") as channel:
            channel.unary_unary(f"/{SERVICES[Signal.TRACES]}/Export")(body, timeout=20)
        requests = [received for received in receiver.read() if isinstance(received.message, Request)]
    finally:
        connection.close()
        receiver.close()
    assert len(forwarded) == 2
    # the second is the first once more
    assert [received.tgid for received in requests] == [os.getpid()]
    assert receiver.broken == {"duplicate": 1}


def send(receiver: OtlpReceiver, *messages: object) -> list[Received]:
    """On a connection that is open while the receiver asks whose it is."""
    connection = http.client.HTTPConnection("127.0.0.1", receiver.http_port, timeout=20)
    for message in messages:
        body = message.SerializeToString()  # type: ignore[attr-defined]
        connection.request("POST", "/v1/traces", body, {"Content-Type": PROTOBUF})
        assert connection.getresponse().read() == b""
    connection.close()
    return receiver.read()


def test_a_sender_is_greeted_once_and_again_when_its_resource_changes(receiver: OtlpReceiver) -> None:
    one = traces(
        resource={"service.name": "a", "service.version": "3", "host.name": "h", "process.pid": os.getpid()}
    )
    other = traces(resource={"k8s.pod.name": "p"})
    hellos = send(receiver, one, one, other)
    assert [received.tgid for received in hellos] == [os.getpid()] * 2
    assert [received.message for received in hellos] == [
        Hello(os.getpid(), "a", "3", {"service.name": "a", "service.version": "3", "host.name": "h"}),
        Hello(os.getpid(), "unknown_service", "", {"k8s.pod.name": "p"}),
    ]
    assert receiver.connected() == [os.getpid()]
    assert receiver.connected() == []


def test_a_process_that_tells_of_its_requests_itself_is_forwarded_only(
    receiver: OtlpReceiver, forwarded: Forwarded
) -> None:
    receiver.ignore({os.getpid()})
    assert send(receiver, SOME) == []
    assert len(forwarded) == 1
    assert receiver.connected() == []
    receiver.ignore(set())
    assert [type(received.message) for received in send(receiver, SOME)] == [Hello, Request]


def test_a_process_that_is_gone_is_forgotten(receiver: OtlpReceiver) -> None:
    send(receiver, traces(span(2, 1, **RECENT)))
    assert receiver.take_gone({os.getpid()}) == set()
    assert receiver.take_gone({1}) == {os.getpid()}
    assert receiver.take_gone({1}) == set()
    assert receiver.broken == {"no_root": 1}
    # and greeted if it comes back, or another by its number
    assert [type(received.message) for received in send(receiver, traces())] == [Hello]


def test_what_a_relay_sends_is_of_the_process_that_it_names(receiver: OtlpReceiver) -> None:
    parent = os.getppid()
    relayed = traces(span(1, **RECENT), resource={"process.pid": parent})
    named = relayed.resource_spans.add()
    named.CopyFrom(traces(span(2, **RECENT), resource={"process.pid": os.getpid()}).resource_spans[0])
    nobody = relayed.resource_spans.add()
    nobody.CopyFrom(traces(span(3, **RECENT), resource={"process.pid": (1 << 31) - 1}).resource_spans[0])
    unsaid = relayed.resource_spans.add()
    unsaid.CopyFrom(traces(span(4, **RECENT), resource={"service.name": "a"}).resource_spans[0])
    unsaid.resource.attributes.append(attribute("b", "c"))

    found = [(received.tgid, received.message) for received in send(receiver, relayed)]

    requests = {tgid: message.name for tgid, message in found if isinstance(message, Request)}
    assert requests == {parent: "span 1", os.getpid(): "span 2"}
    assert receiver.refused == {"unknown_sender": 1}
    assert receiver.connected() == sorted([parent, os.getpid()])


def test_senders_of_other_users_are_refused(
    open_receiver: Callable[..., OtlpReceiver], forwarded: Forwarded
) -> None:
    receiver = open_receiver(allow_uids=(os.geteuid() + 1,))
    status, answer, _ = post(receiver, "/v1/traces", SOME.SerializeToString())
    assert status == 403
    assert f"user {os.geteuid()}" in Status.FromString(answer).message
    assert call(receiver, Signal.TRACES, SOME.SerializeToString())[0] is grpc.StatusCode.PERMISSION_DENIED
    assert receiver.refused == {"foreign_uid": 2}
    assert forwarded == []

    receiver.allow((os.geteuid(),))
    assert post(receiver, "/v1/traces", SOME.SerializeToString())[0] == 200


def test_what_is_not_read_in_time_is_forwarded_and_counted(
    receiver: OtlpReceiver, forwarded: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_QUEUED", 30_000)
    monkeypatch.setattr(intake, "MAX_QUEUED_OF_ONE", 30_000)
    many = traces(*(span(number, 1, **RECENT) for number in range(2, 20_000)))
    for _ in range(2):
        assert post(receiver, "/v1/traces", many.SerializeToString())[0] == 200
    assert len(forwarded) == 2
    assert receiver.refused["backlog"] == 1


def test_what_waits_of_one_process_leaves_room_for_others(
    receiver: OtlpReceiver, forwarded: Forwarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_QUEUED_OF_ONE", 2000)
    many = traces(*(span(number, 1, **RECENT) for number in range(2, 1500)))
    other = traces(span(1, **RECENT), resource={"process.pid": os.getppid()})
    for message in (many, many, other):
        assert post(receiver, "/v1/traces", message.SerializeToString())[0] == 200

    assert receiver.refused["backlog"] == 1
    assert [one.tgid for one in receiver.read() if isinstance(one.message, Request)] == [os.getppid()]
    assert post(receiver, "/v1/traces", many.SerializeToString())[0] == 200  # there is room again
    assert receiver.refused["backlog"] == 1
    assert len(forwarded) == 4


POST = """
import http.client
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
connection.request("POST", "/v1/logs", b"", {"Content-Type": "application/x-protobuf"})
print(connection.getresponse().status)
"""


def test_one_process_cannot_take_all_connections_or_turns(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "WAIT_FOR_TURN_S", 0.1)
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS_OF_ONE", 12)
    # GIVEN a process that begins as many messages as may be read at a time, and finishes none
    head = b"POST /v1/logs HTTP/1.1\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1000\r\n\r\n"
    greedy = [socket.create_connection(("127.0.0.1", receiver.http_port), timeout=20) for _ in range(20)]
    for connection in greedy:
        with contextlib.suppress(OSError):  # of those beyond its share
            connection.sendall(head)
    beyond = 20 - http_server.MAX_CONNECTIONS_OF_ONE
    waiting = http_server.MAX_CONNECTIONS_OF_ONE - http_server.MAX_MESSAGES_OF_ONE
    expected = {"too_many_connections": beyond, "busy": waiting}
    eventually(lambda: refused(receiver) == expected, "its share is used up")

    # THEN another is served
    with program(POST, receiver.http_port) as other:
        other.go()
        assert other.finish() == ["200"]
    for connection in greedy:
        connection.close()


def test_turns_are_shared() -> None:
    turns = intake.Turns(2, 1)
    with turns.of(7, 0):
        with pytest.raises(MessageError, match="busy"), turns.of(7, 0):
            pytest.fail("it has one already")
        with turns.of(8, 0), pytest.raises(MessageError, match="busy"), turns.of(9, 0.01):
            pytest.fail("there are two")
    with turns.of(7, 0):
        pass


def test_one_call_reads_a_part_of_what_waits(receiver: OtlpReceiver) -> None:
    waiting = [
        traces(*(span(10_000 * m + n, trace=bytes([m] * 16), **RECENT) for n in range(1, 1002)))
        for m in (1, 2, 3, 4)
    ]
    for message in waiting[:-1]:
        assert post(receiver, "/v1/traces", message.SerializeToString())[0] == 200
    first = send(receiver, waiting[-1])
    names = [
        [one.message.name for one in read if isinstance(one.message, Request)] for read in (first, receiver.read())
    ]
    assert [len(part) for part in names] == [3 * 1001, 1001]
