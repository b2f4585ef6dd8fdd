"""Whose the other end of a TCP connection is: by the kernel, and by /proc where the kernel cannot be asked."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.otlp.senders import Peer, Process, Senders
from tailspan.errors import ProbeError
from tests.conftest import eventually
from tests.netns import link
from tests.workloads import Program, program

pytestmark = pytest.mark.kernel

COUNT = 23
NOBODY = 65534

#: Connects argv[3] times to argv[1]:argv[2].
CONNECTS = """
import socket
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
connections = []
for _ in range(int(sys.argv[3])):
    connections.append(socket.socket(family))
    connections[-1].connect((sys.argv[1], int(sys.argv[2])))
print("connected", flush=True)
sys.stdin.readline()
"""

#: Connects, and forks a child that keeps, as long as the parent lives, what the parent closes when it is told to.
FORKS = """
import socket
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
ours, parents = os.pipe()
child = os.fork()
if not child:
    os.close(parents)
    os.read(ours, 1)
    os._exit(0)
print(child, flush=True)
sys.stdin.readline()
connection.close()
print("closed", flush=True)
sys.stdin.readline()
"""

#: Connects within its own network, and says both ports.
TO_ITSELF = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listener.getsockname())
print(connection.getsockname()[1], listener.getsockname()[1], flush=True)
sys.stdin.readline()
"""

LISTENS = """
import socket
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
connection, peer = listener.accept()
print(peer[1], flush=True)
sys.stdin.readline()
"""


@contextmanager
def listening(host: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::", backlog=COUNT) as listener:
        listener.settimeout(20)
        yield listener


def accept(listener: socket.socket) -> tuple[socket.socket, Peer]:
    connection, (address, port, *_) = listener.accept()
    return connection, Peer.of(address, port, listener.getsockname()[1])


@pytest.fixture(params=["kernel", "/proc"])
def senders(request: pytest.FixtureRequest, open_source: Callable[..., BpfSource]) -> Senders:
    return Senders(open_source() if request.param == "kernel" else None)


def itself(one: Program, uid: int = 0) -> Process:
    return Process(one.pid, one.pid_inside, uid)


@pytest.mark.parametrize(
    ("listens", "connects"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1"), ("::", "::ffff:127.0.0.1")],
)
def test_every_connections_process_is_found(senders: Senders, listens: str, connects: str) -> None:
    with (
        listening(listens) as listener,
        program(CONNECTS, connects, listener.getsockname()[1], COUNT) as one,
        program(CONNECTS, connects, listener.getsockname()[1], COUNT) as other,
    ):
        found = []
        for client in (one, other):
            client.go()
            accepted = [accept(listener) for _ in range(COUNT)]
            found += [senders.holders(peer) for _, peer in accepted]
            for connection, _ in accepted:
                connection.close()
    assert found == [(itself(one),)] * COUNT + [(itself(other),)] * COUNT


def test_the_oldest_that_holds_a_connection_comes_first(senders: Senders) -> None:
    with listening("127.0.0.1") as listener, program(FORKS, listener.getsockname()[1]) as parent:
        parent.go()
        connection, peer = accept(listener)
        child = int(parent.line())
        assert [holder.tgid for holder in senders.holders(peer)] == [parent.pid, child]

        parent.go()
        assert parent.line() == "closed"
        senders.forget(peer)
        assert [holder.tgid for holder in senders.holders(peer)] == [child]
        connection.close()


def test_what_is_known_of_a_connection_is_remembered_until_it_is_forgotten(senders: Senders) -> None:
    with (
        listening("127.0.0.1") as listener,
        program(CONNECTS, "127.0.0.1", listener.getsockname()[1], 1) as client,
    ):
        client.go()
        connection, peer = accept(listener)
        assert senders.holders(peer) == (itself(client),)
        client.go()
        client.finish()
        assert senders.holders(peer) == (itself(client),)
        senders.forget(peer)
        assert senders.holders(peer) == ()
        connection.close()


@pytest.mark.both_loaders
def test_another_users_process_in_a_pid_namespace_has_both_its_numbers(
    senders: Senders, nobodys_python: tuple[str, dict[str, str]]
) -> None:
    interpreter, environment = nobodys_python
    body = "import os, socket, sys\nsocket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1)\n"
    with listening("127.0.0.1") as listener:
        command = [
            *("unshare", "--pid", "--fork", "--kill-child"),
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            *(interpreter, "-c", body, str(listener.getsockname()[1])),
        ]
        child = subprocess.Popen(command, env=environment, cwd="/", stdin=subprocess.DEVNULL)
        try:
            connection, peer = accept(listener)
            (holder,) = senders.holders(peer)
            assert (holder.ns_tgid, holder.uid) == (1, NOBODY)
            assert holder.tgid not in (1, child.pid)
            assert senders.process(holder.tgid) == holder
        finally:
            connection.close()
            assert child.wait(timeout=20) == 0


def test_the_loopback_of_another_network_is_another(source: BpfSource) -> None:
    with link() as (left, _), program(TO_ITSELF, prefix=left.prefix) as client:
        client.go()
        port, own_port = map(int, client.line().split())
        assert Senders(source).holders(Peer.of("127.0.0.1", port, own_port)) == ()
        # though the kernel has it
        assert client.pid in source.socket_owners(own_port)["tgid"]


def test_a_sender_in_another_network_of_this_host_is_found(source: BpfSource) -> None:
    with (
        link() as (left, right),
        program(LISTENS, right.address, prefix=right.prefix) as server,
    ):
        server.go()
        own_port = int(server.line())
        with program(CONNECTS, right.address, own_port, 1, prefix=left.prefix) as client:
            client.go()
            port = int(server.line())
            assert Senders(source).holders(Peer.of(left.address, port, own_port)) == (itself(client),)


def test_nobody_is_found_where_nobody_is(senders: Senders) -> None:
    assert senders.holders(Peer.of("127.0.0.1", 1, 2)) == ()
    assert senders.holders(Peer.of("192.0.2.1", 40_000, 4317)) == ()
    assert senders.process((1 << 31) - 1) is None


def test_a_process_is_found_by_its_number_and_a_new_one_soon(senders: Senders) -> None:
    assert senders.process(os.getpid()) == Process(os.getpid(), os.getpid(), os.geteuid())
    with program("sys.stdin.readline()") as new:
        eventually(lambda: senders.process(new.pid) == itself(new), "the new process is found")


def test_without_the_probe_the_files_of_processes_are_looked_at(open_source: Callable[..., BpfSource]) -> None:
    source = open_source(disabled=frozenset({"owners"}))
    with pytest.raises(ProbeError, match="disabled by configuration"):
        source.socket_owners(4317)
    with (
        listening("127.0.0.1") as listener,
        program(CONNECTS, "127.0.0.1", listener.getsockname()[1], 1) as client,
    ):
        client.go()
        connection, peer = accept(listener)
        assert Senders(source).holders(peer) == (itself(client),)
        connection.close()


ASKS = """
import socket, sys
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.otlp.senders import Peer, Senders
source = BpfSource()
print(Senders(source).holders(Peer.of("127.0.0.1", int(sys.argv[1]), int(sys.argv[2])))[0].tgid)
print(Senders(None).holders(Peer.of("127.0.0.1", int(sys.argv[1]), int(sys.argv[2]))))
source.close()
"""


def test_two_capabilities_without_root_find_another_users_process(
    nobodys_python: tuple[str, dict[str, str]],
) -> None:
    interpreter, environment = nobodys_python
    held = "-all,+bpf,+perfmon"
    with (
        listening("127.0.0.1") as listener,
        program(CONNECTS, "127.0.0.1", listener.getsockname()[1], 1) as client,
    ):
        client.go()
        connection, peer = accept(listener)
        command = [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
            *(f"--inh-caps={held}", f"--ambient-caps={held}", f"--bounding-set={held}"),
            *(interpreter, "-c", ASKS, str(peer.port), str(peer.own_port)),
        ]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
        connection.close()
    assert done.returncode == 0, done.stderr
    # where /proc says nothing
    assert done.stdout.split("\n")[:2] == [str(client.pid), "()"]
