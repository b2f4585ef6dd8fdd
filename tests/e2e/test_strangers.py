"""Who may not connect, who sends too much, who has no certificate: refused, counted, and nobody else is harmed."""

from __future__ import annotations

import os
import re
import ssl
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.e2e.backends import Certificates
from tests.e2e.conftest import AgentProcess, free_port, metric
from tests.workloads import program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

NOBODY = 65534
CONNECT = """
import socket
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for _ in range(5):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(sys.argv[1])
        print("closed" if not connection.recv(1) else "served", flush=True)
    except PermissionError:
        print("denied", flush=True)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """That everybody may enter; pytest's own ones lie below one that root alone may."""
    with tempfile.TemporaryDirectory(prefix="tailspan-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def dropped(port: int, reason: str) -> float:
    return metric(port, f'tailspan_dropped_messages_total{{reason="{reason}"}}')


def test_who_may_not_open_the_socket_is_denied_and_who_is_not_allowed_is_refused(
    run_agent: Callable[..., AgentProcess], open_folder: Path
) -> None:
    port = free_port()
    agent = run_agent(f"export.prometheus=127.0.0.1:{port}", "worker.allow_uids=0", folder=open_folder)
    # By its mode: the kernel's word, of which the agent hears nothing
    with program(CONNECT, agent.socket) as stranger:
        stranger.go()
        assert stranger.finish() == ["denied"] * 5
    assert dropped(port, "foreign_uid") == 0

    # By the configuration: each is counted, and one is named
    agent.socket.chmod(0o666)
    with program(CONNECT, agent.socket) as stranger:
        stranger.go()
        assert stranger.finish() == ["closed"] * 5
    eventually(lambda: dropped(port, "foreign_uid") == 5, "all five are counted")
    agent.stop()
    said = re.findall(r"refused pid (\d+): worker.allow_uids does not have its user (\d+)", agent.log.read_text())
    assert said == [(str(stranger.pid), str(NOBODY))]


FLOOD = """
import tailspan.client
client = tailspan.client.connect("flood", path=sys.argv[1])
for number in range(10_000):
    with client.request("flood"):
        pass
print(client.dropped, flush=True)
sys.stdin.readline()
"""
STEADY = """
import tailspan.client
client = tailspan.client.connect("steady", path=sys.argv[1])
for number in range(200):
    with client.request("steady"):
        time.sleep(0.005)
print(client.dropped, flush=True)
sys.stdin.readline()
"""


def served(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    series = re.findall(
        rf'^tailspan_request_duration_seconds_count{{[^}}]*name="{name}"[^}}]*}} (\S+)', text, re.MULTILINE
    )
    return sum(map(float, series))


def test_a_flood_of_one_worker_takes_nothing_from_another(run_agent: Callable[..., AgentProcess]) -> None:
    port = free_port()
    agent = run_agent(f"export.prometheus=127.0.0.1:{port}", "worker.packets_per_s=500", "slow.min_excess_ms=1000")
    with program(STEADY, agent.socket) as steady, program(FLOOD, agent.socket) as flood:
        steady.go()
        flood.go()
        own = int(flood.line())
        assert steady.line() == "0"
        eventually(lambda: served(port, "steady") == 200, "all of the steady one's are judged")

        # its requests, each a packet, one hello, and what it told of its own drops
        def accounted() -> float:
            return own + dropped(port, "over_budget") + served(port, "flood")

        eventually(lambda: accounted() >= 10_000, "all that was sent is accounted for")
        settled = accounted()
        assert settled <= 10_000 + 1 + dropped(port, "over_budget")
        assert dropped(port, "over_budget") > 0
        assert served(port, "flood") < 9_000
        flood.go()
        steady.go()
    agent.stop()
    assert f"pid {flood.pid} sends more than worker.packets_per_s = 500" in agent.log.read_text()


def test_beyond_loopback_metrics_are_served_to_those_with_a_certificate(
    run_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    made = Certificates(tmp_path)
    port = free_port()
    agent = run_agent(
        f"export.prometheus=0.0.0.0:{port}",
        f"tls.certificate={made.server}",
        f"tls.key={made.server_key}",
        f"tls.client_ca={made.ca}",
    )
    url = f"https://127.0.0.1:{port}/metrics"
    stranger = ssl.create_default_context(cafile=str(made.ca))
    with pytest.raises(OSError, match=r"certificate required|reset|EOF"):
        urllib.request.urlopen(url, timeout=20, context=stranger).read()
    known = ssl.create_default_context(cafile=str(made.ca))
    known.load_cert_chain(made.client, made.client_key)
    with urllib.request.urlopen(url, timeout=20, context=known) as answer:
        assert b"tailspan_probe_attached" in answer.read()
    agent.stop()


def test_what_is_stored_is_for_the_group_whatever_the_umask(run_agent: Callable[..., AgentProcess]) -> None:
    before = os.umask(0o077)
    try:
        agent = run_agent("store.keep=all", environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    finally:
        os.umask(before)
    with program(STEADY, agent.socket) as worker:
        worker.go()
        assert worker.line() == "0"
        eventually(lambda: list(agent.store.glob("*.tspan")), "a segment is there")
        eventually(lambda: list(agent.store.glob("spool/*/*")), "a spool is there")
        worker.go()
    agent.stop()
    found = {path: path.stat().st_mode & 0o777 for path in [agent.store, *agent.store.rglob("*")]}
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o750}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o640}
    assert {path.suffix for path in found} >= {".tspan", ""}
