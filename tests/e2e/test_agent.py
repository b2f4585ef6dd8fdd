"""The agent against everything that can go wrong around it: it says so, counts, and goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.verdict import Outcome
from tailspan.wire import spans
from tests.conftest import eventually
from tests.e2e.conftest import AgentProcess, free_port, metric
from tests.e2e.test_explain import SERVE, assert_conserved, part
from tests.workloads import LAST_CPU, program

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]


def connect(agent: AgentProcess) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(agent.socket))
    return connection


def test_malformed_messages_are_counted_by_reason_and_harm_nobody(run_agent: Callable[..., AgentProcess]) -> None:
    port = free_port()
    agent = run_agent(f"export.prometheus=127.0.0.1:{port}", "store.keep=all")
    bad = {
        "malformed": b"\xc1\xc1\xc1",
        "version": msgpack.packb({"v": 99, "k": "request"}),
        "kind": msgpack.packb({"v": spans.VERSION, "k": "surprise"}),
        "field": msgpack.packb({"v": spans.VERSION, "k": "drops", "c": "many"}),
        "oversized": b"\x00" * (spans.MAX_PACKET + 1),
    }
    truncated = spans.encode(spans.Hello(1, "x"))[:-3]

    # WHEN one peer sends each of them 7 times, and a truncated one once
    with connect(agent) as rogue:
        for _ in range(7):
            for packet in bad.values():
                rogue.send(packet)
        rogue.send(truncated)

        # THEN each is counted under its reason
        for reason in bad:
            expected = 8.0 if reason == "malformed" else 7.0
            series = f'tailspan_dropped_messages_total{{reason="{reason}"}}'
            eventually(lambda s=series, n=expected: metric(port, s) == n, f"{reason} is {expected}")

    # AND another worker is served as ever
    with program(SERVE, agent.socket, 5) as worker:
        worker.go()
        assert worker.line() == "warm"
        worker.go()
        assert worker.finish() == ["dropped 0"]
    agent.stop()
    assert len(agent.verdicts()) == 65


def test_a_foreign_uid_is_refused_and_counted(run_agent: Callable[..., AgentProcess]) -> None:
    port = free_port()
    agent = run_agent(f"export.prometheus=127.0.0.1:{port}", "worker.allow_uids=0", "worker.mode=0666")
    for parent in [agent.socket, *agent.socket.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o005)
    connects = f"""if True:
        import os, socket
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.connect({str(agent.socket)!r})
        os.setuid(65534)
        t = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.chdir("/")
        t.connect("/proc/self/fd/3/worker.sock")
        t.recv(1)
    """
    folder = os.open(agent.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.dup2(folder, 3, inheritable=True) if folder != 3 else os.set_inheritable(3, True)
        stranger = subprocess.Popen([sys.executable, "-c", connects], pass_fds=(3,))
        series = 'tailspan_dropped_messages_total{reason="foreign_uid"}'
        eventually(lambda: metric(port, series) == 1.0, "the connection is refused")
        assert stranger.wait(timeout=20) == 0  # its recv() ended: the agent has closed it
    finally:
        os.close(folder)
    agent.stop()


def test_a_worker_that_is_killed_does_not_take_the_agent_along(run_agent: Callable[..., AgentProcess]) -> None:
    agent = run_agent("store.keep=all")
    with program(SERVE, agent.socket, 1000) as worker:
        worker.go()
        assert worker.line() == "warm"
        os.kill(worker.pid, signal.SIGKILL)
        worker.process.wait()
    with program(SERVE, agent.socket, 3) as worker:
        worker.go()
        assert worker.line() == "warm"
        worker.go()
        worker.finish()
    agent.stop()
    served = [v for v in agent.verdicts() if v.request.pid == worker.pid]
    assert len(served) == 63
    known = [part(v, Cause.UNKNOWN).ns < 0.01 * v.request.wall_ns for v in served]
    assert known.index(True) <= 7  # the first come before it is followed
    assert all(known[known.index(True) :])


STORM = """
import tailspan.client
client = tailspan.client.connect(service="toy", path=sys.argv[1])
print("connected", flush=True)
sys.stdin.readline()
a, b = os.pipe(), os.pipe()
def echo():
    while (byte := os.read(a[0], 1)) == b"x": os.write(b[1], byte)
thread = threading.Thread(target=echo); thread.start()
for _ in range(30):
    with client.request("POST /storm"):
        for _ in range(600):
            os.write(a[1], b"x"); os.read(b[0], 1)
os.write(a[1], b"."); thread.join()
"""


def test_lost_records_are_on_the_verdict_and_make_it_inconclusive(run_agent: Callable[..., AgentProcess]) -> None:
    # GIVEN a ring far too small for a storm of context switches, every one of which is to be recorded
    port = free_port()
    small = ("probes.ring_kib=64", "probes.short_wait_us=0")
    agent = run_agent(*small, "store.keep=all", f"export.prometheus=127.0.0.1:{port}")
    with program(STORM, agent.socket) as worker:
        worker.go()
        assert worker.line() == "connected"
        eventually(lambda: f"following pid {worker.pid}" in agent.log.read_text(), "the worker is followed")
        # WHEN nobody drains it meanwhile
        agent.process.send_signal(signal.SIGSTOP)
        worker.go()
        worker.finish()
        agent.process.send_signal(signal.SIGCONT)
        series = 'tailspan_lost_records_total{class="cycle"}'
        eventually(lambda: metric(port, series) > 0, "what was lost is counted")
    agent.stop()

    verdicts = agent.verdicts()
    assert_conserved(verdicts)
    hit = [v for v in verdicts if v.trust.lost]
    assert hit
    blind = [v for v in hit if v.trust.coverage < 0.9]
    assert blind
    # nothing that was lost passes for CPU time: the storm is mostly waiting, and a ledger that claims to have
    # seen it all has seen it
    for verdict in (v for v in verdicts if v.trust.coverage > 0.99):
        assert part(verdict, Cause.ON_CPU).ns < 0.8 * verdict.request.wall_ns
    for verdict in blind:
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "could not be seen" in verdict.sentence
        assert part(verdict, Cause.UNKNOWN).ns > 0.09 * verdict.request.wall_ns


def test_syscalls_are_traced_for_a_time_on_command_and_then_cost_nothing(
    run_agent: Callable[..., AgentProcess],
) -> None:
    agent = run_agent()
    body = """
    import tailspan.client
    client = tailspan.client.connect(service="toy", path=sys.argv[1])
    with client.request("GET /x"): pass
    print("up", flush=True)
    sys.stdin.readline()
    for _ in range(23): os.getppid()
    fd = os.open("/dev/zero", os.O_RDONLY)
    for _ in range(17): os.pread(fd, 4096, 0)
    print("done", flush=True)
    sys.stdin.readline()
    """
    with program(body, agent.socket) as worker:
        worker.go()
        assert worker.line() == "up"
        asking = subprocess.Popen(
            [sys.executable, "-m", "tailspan", "syscalls", "--for", "3s", "--json"],
            env={**os.environ, "TAILSPAN_AGENT_CONTROL": str(agent.folder / "control.sock")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: _attached(agent.process.pid, "on_sys_enter"), "the probe is attached")
        worker.go()
        assert worker.line() == "done"
        out, err = asking.communicate(timeout=30)
        assert asking.returncode == 0, err
        eventually(
            lambda: not _attached(agent.process.pid, "on_sys_enter"), "the probe is detached when the time is over"
        )
        worker.go()
        worker.finish()
    agent.stop()

    import json

    rows = {row["syscall"]: row for row in json.loads(out)["rows"] if row["pid"] == worker.pid}
    assert rows["getppid"]["count"] == 23
    assert rows["pread64"]["count"] == 17
    assert 0 < rows["getppid"]["p50_ns"] <= rows["getppid"]["p99_ns"]
    assert "every system call" in err


def _attached(pid: int, program_name: str) -> bool:
    """Whether a process holds a link to a BPF program of that name."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = info.read_text()
        except FileNotFoundError:
            continue
        if "link_type:" in text and "prog_id:" in text:
            found.add(_name_of(int(text.split("prog_id:")[1].split()[0])))
    return program_name in found


def _name_of(program_id: int) -> str:
    """bpf(2): BPF_PROG_GET_FD_BY_ID, then BPF_OBJ_GET_INFO_BY_FD; the name is at offset 64 of bpf_prog_info."""
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    by_id = ctypes.create_string_buffer(struct.pack("<III", program_id, 0, 0) + b"\0" * 116)
    fd = libc.syscall(321, 13, by_id, 12)
    if fd < 0:
        return ""
    try:
        info = ctypes.create_string_buffer(256)
        ask = ctypes.create_string_buffer(struct.pack("<IIQ", fd, 232, ctypes.addressof(info)))
        assert libc.syscall(321, 15, ask, 16) == 0
        return info.raw[64:80].split(b"\0")[0].decode()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        (("slow.fastness=1",), 2, "fastness"),
        (("probes.ring_kib=3",), 2, "ring_kib"),
        (("probes.disabled=sched",), 3, "sched"),
        (("worker.socket=/proc/nowhere/worker.sock",), 3, "/proc/nowhere"),
    ],
)
def test_a_wrong_start_ends_with_one_clear_line(
    tmp_path: Path, settings: tuple[str, ...], code: int, says: str
) -> None:
    given = (
        f"worker.socket={tmp_path / 'w.sock'}",
        f"agent.control={tmp_path / 'c.sock'}",
        f"store.path={tmp_path}",
    )
    command = [sys.executable, "-m", "tailspan", "run"]
    command += [word for setting in (*given, "export.prometheus=", *settings) for word in ("--set", setting)]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_agent_on_the_same_socket_is_refused(run_agent: Callable[..., AgentProcess]) -> None:
    agent = run_agent()
    command = [sys.executable, "-m", "tailspan", "run", "--set", f"worker.socket={agent.socket}"]
    command += ["--set", f"agent.control={agent.folder / 'other.sock'}", "--set", "export.prometheus="]
    command += ["--set", f"store.path={agent.folder / 'other'}"]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert result.returncode == 3
    assert "another agent listens" in result.stderr
    agent.stop()


def test_a_socket_left_by_a_killed_agent_is_taken_over(
    run_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    first = run_agent()
    first.process.kill()
    first.process.wait()
    assert first.socket.exists()

    second = run_agent(f"worker.socket={first.socket}")

    with program(SERVE, first.socket, 1, cpu=LAST_CPU) as worker:
        worker.go()
        assert worker.line() == "warm"
        worker.go()
        assert worker.finish() == ["dropped 0"]
    second.stop()
