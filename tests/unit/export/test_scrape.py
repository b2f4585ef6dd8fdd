from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from tailspan.attribute.health import LOAD, Grade, HostHealth, Part, State, WorkerHealth
from tailspan.errors import CannotError
from tailspan.export import scrape
from tailspan.export.exposition import OPENMETRICS, TEXT
from tailspan.export.prometheus import Metrics
from tailspan.export.pulse import STUCK_S, TURNS, Pulse
from tailspan.export.scrape import MetricsServer

WELL = Grade(State.HEALTHY, 93.5, (Part(LOAD, 0.935, "its threads waited for 3% of the time"),), "its threads")
ILL = Grade(State.CRITICAL, 12.0, (Part(LOAD, 0.12, "they waited for 44%"),), "they waited for 44%")
#: Two services, of which one is ill, and so its host.
REPORT = HostHealth(
    ILL, (WorkerHealth("eu/chat bot", ILL, {8200: ILL, 8201: WELL}), WorkerHealth("web", WELL, {8100: WELL}))
)


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def pulse(clock: list[float]) -> Pulse:
    """Of a loop that has come round."""
    beating = Pulse(lambda: clock[0])
    beating.turn(REPORT, {}, "")
    return beating


@pytest.fixture
def server(pulse: Pulse) -> Iterator[MetricsServer]:
    metrics = Metrics()
    metrics.request("infer", "m", "1", "ok", 0.4, "ab" * 16)
    running = MetricsServer(metrics.registry, port=0, pulse=pulse)
    yield running
    running.close()


def _get(server: MetricsServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def test_metrics_are_text_by_default(server: MetricsServer) -> None:
    status, content_type, body = _get(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    assert "tailspan_build_info{" in body
    assert "trace_id" not in body


def test_metrics_are_openmetrics_with_exemplars_where_the_client_accepts_them(server: MetricsServer) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, content_type, body = _get(server, "/metrics", Accept=accept)
    assert status == 200
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert f'# {{trace_id="{"ab" * 16}"}} 0.4' in body
    assert body.endswith("# EOF\n")


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8", True),
        (PROMETHEUS_3, True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=1.0.0;q=0,text/plain", False),
        ("application/openmetrics-text;q=0.000", False),
        (";;=,,;q", False),
    ],
)
def test_the_format_is_the_one_that_the_client_accepts(
    server: MetricsServer, accept: str, openmetrics: bool
) -> None:
    _, content_type, body = _get(server, "/metrics", Accept=accept)
    assert content_type == (OPENMETRICS if openmetrics else TEXT)
    assert body.endswith("# EOF\n") == openmetrics


def test_a_client_that_accepts_gzip_gets_it(server: MetricsServer) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    response = connection.getresponse()
    packed = response.read()
    connection.close()

    assert response.headers["Content-Encoding"] == "gzip"
    assert int(response.headers["Content-Length"]) == len(packed)
    assert gzip.decompress(packed).decode() == _get(server, "/metrics", **{"Accept-Encoding": "gzip;q=0, br"})[2]


def test_scrapes_at_the_same_time_all_get_the_whole_text(server: MetricsServer) -> None:
    bodies: list[str] = []
    scrapers = [threading.Thread(target=lambda: bodies.append(_get(server, "/metrics")[2])) for _ in range(7)]
    for scraper in scrapers:
        scraper.start()
    for scraper in scrapers:
        scraper.join()
    assert bodies == [_get(server, "/metrics")[2]] * 7


def test_healthz_says_whether_the_loop_turns(server: MetricsServer, clock: list[float]) -> None:
    assert _get(server, "/healthz")[::2] == (200, "ok\n")
    clock[0] += STUCK_S + 13
    assert _get(server, "/healthz")[::2] == (503, "the agent is stuck for 23 s\n")
    assert _get(server, "/readyz")[::2] == (503, "the agent is stuck for 23 s\n")


def test_readyz_says_why_it_is_not_ready(server: MetricsServer, pulse: Pulse) -> None:
    assert _get(server, "/readyz")[::2] == (200, "ok\n")
    pulse.turn(REPORT, {"enospc": 1}, "")
    assert _get(server, "/readyz")[::2] == (503, "evidence cannot be stored: enospc\n")
    assert _get(server, "/healthz")[0] == 200


def test_a_server_without_a_loop_is_starting() -> None:
    running = MetricsServer(Metrics().registry, port=0)
    try:
        assert _get(running, "/readyz")[::2] == (503, "starting\n")
        assert json.loads(_get(running, "/health")[2])["host"]["state"] == "unknown"
    finally:
        running.close()


def test_health_is_all_that_is_known(server: MetricsServer) -> None:
    status, content_type, body = _get(server, "/health")
    assert (status, content_type) == (503, "application/json")
    report = json.loads(body)
    assert report["host"] == {
        "state": "critical",
        "score": 12.0,
        "why": "they waited for 44%",
        "parts": {"load": {"value": 0.12, "reason": "they waited for 44%"}},
    }
    assert [(each["service"], each["state"]) for each in report["workers"]] == [
        ("eu/chat bot", "critical"),
        ("web", "healthy"),
    ]
    assert [each["pid"] for each in report["workers"][0]["processes"]] == [8200, 8201]


@pytest.mark.parametrize(
    ("path", "status", "state"),
    [
        ("/health/web", 200, "healthy"),
        ("/health/web?from=haproxy", 200, "healthy"),
        ("/health/eu/chat%20bot", 503, "critical"),
        ("/health/8201", 200, "healthy"),
        ("/health/8200", 503, "critical"),
    ],
)
def test_a_worker_is_asked_for_by_its_service_or_pid(
    server: MetricsServer, path: str, status: int, state: str
) -> None:
    found, _, body = _get(server, path)
    assert (found, json.loads(body)["state"]) == (status, state)


@pytest.mark.parametrize("path", ["/health/mail", "/health/", "/health/9", "/health/%ff", "/health/web/"])
def test_an_unknown_worker_is_404_once_it_would_have_been_heard_of(
    server: MetricsServer, pulse: Pulse, path: str
) -> None:
    # GIVEN an agent that has just started: that a worker is not among those it knows says nothing
    status, _, body = _get(server, path)
    assert (status, json.loads(body)["state"], json.loads(body)["why"]) == (200, "unknown", "not heard of yet")
    for _ in range(TURNS):
        pulse.turn(REPORT, {}, "")
    assert _get(server, path)[0] == 404


def test_a_stuck_agent_takes_no_worker_out_of_service(server: MetricsServer, clock: list[float]) -> None:
    clock[0] += STUCK_S + 1
    for path in ("/health", "/health/eu/chat%20bot", "/health/mail"):
        status, _, body = _get(server, path)
        assert status == 200
        assert "unknown" in body
        assert "stuck" in body


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/health", "/health/web", "/nothing"])
def test_head_is_get_without_the_body(server: MetricsServer, path: str) -> None:
    status, content_type, body = _get(server, path, "HEAD")
    assert body == ""
    assert (status, content_type) == _get(server, path)[:2]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/../etc/passwd", "http://127.0.0.1/debug"])
def test_any_other_path_is_404(server: MetricsServer, path: str) -> None:
    assert _get(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_any_other_method_is_refused(server: MetricsServer, method: str) -> None:
    assert _get(server, "/metrics", method)[0] == 501


def test_idle_connections_are_bounded_and_cut_off_and_do_not_keep_others_out(
    monkeypatch: pytest.MonkeyPatch, server: MetricsServer
) -> None:
    # GIVEN more idle connections than are served at a time
    assert scrape._Handler.timeout == scrape.SOCKET_TIMEOUT_S
    monkeypatch.setattr(scrape._Handler, "timeout", 0.3)
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(scrape.MAX_CONNECTIONS + 3)]

    # WHEN they say nothing
    deadline = time.monotonic() + 10
    while True:
        try:
            status = _get(server, "/healthz")[0]
            break
        except OSError:  # one of those above the bound: closed at once
            assert time.monotonic() < deadline
            time.sleep(0.02)

    # THEN they are closed, one and all, and a scrape gets through
    assert status == 200
    for connection in idle:
        connection.settimeout(10)
        assert connection.recv(1) == b""
        connection.close()


def test_close_ends_the_thread_and_frees_the_port() -> None:
    metrics = Metrics()
    first = MetricsServer(metrics.registry, port=0)
    first.close()
    second = MetricsServer(metrics.registry, port=first.port)
    second.close()
    assert "tailspan-metrics" not in {thread.name for thread in threading.enumerate()}


def test_an_address_in_use_is_a_clear_error(server: MetricsServer) -> None:
    with pytest.raises(CannotError, match=rf"cannot serve metrics on 127.0.0.1:{server.port}: .*in use"):
        MetricsServer(Metrics().registry, port=server.port)


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1), ("a" * 300, 0)]
)
def test_an_address_that_is_not_this_hosts_is_a_clear_error(host: str, port: int) -> None:
    with pytest.raises(CannotError, match="cannot serve metrics on "):
        MetricsServer(Metrics().registry, host, port)
