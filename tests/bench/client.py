"""What the client costs a worker, per request: agent up, absent, stopped (SIGSTOP), and flooded by somebody else.
And once: to connect; and for each garbage collection: to time it.

A request here is one context with a traceparent, three spans, a queue span and batch facts: what the reference
worker sends. They are made 32 at a time, every 5 ms, each timed alone; in between, as often, a function is called
that does nothing but pass about the same time, for what the machine does to any call. The four states have turns;
each keeps its own connection, and the flood is only there in its turn. The agent is what the real one has to read
its socket, on its timer, in a process of its own.

That a call took long does not say that it blocked: the scheduler may have given its CPU to others. One that blocks
leaves the CPU by itself, which the kernel counts (``ru_nvcsw``).

Noise: 5 to 10 % between rounds; p99 and the worst are those of a machine with other work, flooded more so.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import tailspan.client
from tailspan.client import Client
from tailspan.collect.worker import WorkerServer
from tailspan.errors import CannotError
from tests.bench.page import table
from tests.bench.spread import Figures, estimate, turns
from tests.bench.storm import TICK_S

UP, ABSENT, STOPPED, FLOODED = "up", "absent", "stopped", "flooded"
STATES = {
    UP: "agent up",
    ABSENT: "agent absent",
    STOPPED: "agent stopped, never reads",
    FLOODED: "another process floods the agent",
}
BURST = 32  #: requests at a time; what comes in one tick of the agent fits into a socket
BURST_EVERY_S = 0.005
SPIN_NS = 15_000
CALLBACKS = 100_000
COLLECTIONS = 2_000
HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def serve(client: Client) -> None:
    with client.request(
        "POST /v1/infer", traceparent=HEADER, request_id="r", model="m", model_version="1"
    ) as request:
        with request.span("preprocess"):
            pass
        request.queued(1, 2, 3)
        request.add_span("run", 3, 2, 4)
        request.batch(1, 1, 8)
        with request.span("postprocess"):
            pass


def spin(_: Client) -> None:
    """Passes about the time of a request, without the client."""
    until = time.perf_counter_ns() + SPIN_NS
    while time.perf_counter_ns() < until:
        pass


@dataclass(slots=True)
class _Calls:
    """Of one state and round."""

    ns: list[int] = field(default_factory=list)
    spun_ns: list[int] = field(default_factory=list)
    slept: int = 0
    dropped: int = 0


def _burst(client: Client, one: Callable[[Client], None], into: list[int]) -> int:
    """Times each call; returns how often this thread left the CPU by itself meanwhile."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for _ in range(BURST):
        start = time.perf_counter_ns()
        one(client)
        into.append(time.perf_counter_ns() - start)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


def _calls(client: Client, bursts: int) -> _Calls:
    calls = _Calls(dropped=-client.dropped)
    due_s = time.monotonic()
    for _ in range(bursts):
        _burst(client, spin, calls.spun_ns)
        calls.slept += _burst(client, serve, calls.ns)
        due_s += BURST_EVERY_S
        time.sleep(max(0.0, due_s - time.monotonic()))
    calls.dropped += client.dropped
    return calls


def _read(path: Path) -> None:
    server = WorkerServer(path)
    while True:
        server.accept()
        server.read()
        time.sleep(TICK_S)


def _flood(path: Path) -> None:
    """Stopped until it is wanted."""
    os.kill(os.getpid(), signal.SIGSTOP)
    client = tailspan.client.connect("flood", path=path)
    while True:
        serve(client)


@contextlib.contextmanager
def _child(work: Callable[[Path], None], path: Path) -> Iterator[int]:
    """The pid of a process that does this, ended with the context."""
    pid = os.fork()
    if pid == 0:
        try:
            work(path)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def _agent(path: Path) -> Iterator[tuple[int, Client]]:
    """The pid of one that reads, and a client of it."""
    with _child(_read, path) as pid:
        deadline = time.monotonic() + 20
        while True:
            client = tailspan.client.connect("bench", path=path)
            if client.connection.ready():
                break
            client.close()
            if time.monotonic() > deadline:
                raise CannotError("the agent's reader does not listen")
            time.sleep(0.005)
        try:
            yield pid, client
        finally:
            client.close()


def of_requests(folder: Path, rounds: int, bursts: int) -> Figures:
    """State -> what its calls took, and the worst of those that only passed time."""
    found: dict[str, list[_Calls]] = {state: [] for state in STATES}
    with (
        _agent(folder / "up.sock") as (_, up),
        _agent(folder / "stopped.sock") as (stopped_pid, stopped),
        _agent(folder / "flooded.sock") as (_, flooded),
        _child(_flood, folder / "flooded.sock") as flood_pid,
    ):
        absent = tailspan.client.connect("bench", path=folder / "absent.sock")
        clients = {UP: up, ABSENT: absent, STOPPED: stopped, FLOODED: flooded}
        os.waitpid(flood_pid, os.WUNTRACED)
        os.kill(stopped_pid, signal.SIGSTOP)
        os.waitpid(stopped_pid, os.WUNTRACED)
        for order in turns(tuple(STATES), rounds):
            for state in order:
                if state == FLOODED:
                    os.kill(flood_pid, signal.SIGCONT)
                found[state].append(_calls(clients[state], bursts))
                if state == FLOODED:
                    os.kill(flood_pid, signal.SIGSTOP)
                    os.waitpid(flood_pid, os.WUNTRACED)
        absent.close()
    return {state: _summary(rounds_of) for state, rounds_of in found.items()}


def _summary(rounds: list[_Calls]) -> Figures:
    calls = sum(len(one.ns) for one in rounds)
    percentiles = np.array([np.percentile(one.ns, (50, 99)) for one in rounds])
    return {
        "calls": calls,
        "ns": estimate([float(np.mean(one.ns)) for one in rounds]),
        "p50_ns": estimate(percentiles[:, 0].tolist()),
        "p99_ns": estimate(percentiles[:, 1].tolist()),
        "worst_ns": max(max(one.ns) for one in rounds),
        "spun_worst_ns": max(max(one.spun_ns) for one in rounds),
        "slept": sum(one.slept for one in rounds),
        "dropped_percent": round(100 * sum(one.dropped for one in rounds) / calls, 2),
    }


def ns_per_callback() -> float:
    """A chain of callbacks that do nothing, in a loop of its own."""

    async def chain() -> float:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def step(left: int) -> None:
            loop.call_soon(step, left - 1) if left else done.set()

        start = time.perf_counter_ns()
        step(CALLBACKS)
        await done.wait()
        return (time.perf_counter_ns() - start) / CALLBACKS

    return asyncio.run(chain())


def of_the_loop(folder: Path, rounds: int) -> Figures:
    """Watched and unwatched in turn, for a machine that is slower now than a second ago."""
    plain, watched = [], []
    for _ in range(rounds):
        plain.append(ns_per_callback())
        client = tailspan.client.connect("bench", path=folder / "absent.sock")
        client.watch_asyncio()
        watched.append(ns_per_callback())
        client.close()
    return {"ns": round(min(watched) - min(plain)), "unwatched_ns": round(min(plain))}


def ns_per_collection() -> float:
    """Of a youngest generation that is due, all of it alive: the collections that a worker has most of."""
    spent = 0
    gc.disable()
    for _ in range(COLLECTIONS):
        young = [[] for _ in range(gc.get_threshold()[0])]  # type: list[list[int]]
        start = time.perf_counter_ns()
        gc.collect(0)
        spent += time.perf_counter_ns() - start
        del young
    gc.enable()
    return spent / COLLECTIONS


def of_collections(folder: Path, rounds: int) -> Figures:
    """Timed and untimed in turn."""
    plain, timed = [], []
    for _ in range(rounds):
        plain.append(ns_per_collection())
        client = tailspan.client.connect("bench", path=folder / "absent.sock")
        timed.append(ns_per_collection())
        client.close()
    return {"ns": round(min(timed) - min(plain)), "untimed_ns": round(min(plain))}


def of_connecting(folder: Path, rounds: int) -> Figures:
    """To somebody who listens: finds the interpreter's locks, connects, says hello."""
    found = []
    path = folder / "listens.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(4)
        for _ in range(rounds):
            start = time.perf_counter_ns()
            client = tailspan.client.connect("bench", path=path)
            found.append((time.perf_counter_ns() - start) / 1e6)
            listener.accept()[0].close()
            client.close()
    return {"first_ms": found[0], "ms": min(found)}


def run(quick: bool) -> Figures:
    rounds, bursts = (2, 10) if quick else (15, 80)
    others = 2 if quick else 7
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        connecting = of_connecting(folder, others)  # before any other: the first is what a worker sees
        return {
            "rounds": rounds,
            "states": of_requests(folder, rounds, bursts),
            "asyncio_callback": of_the_loop(folder, others),
            "connecting": connecting,
            "collection": of_collections(folder, others),
        }


def render(figures: Figures) -> str:
    states = figures["states"]
    callback, collection, connecting = (figures[name] for name in ("asyncio_callback", "collection", "connecting"))
    rows = [
        [
            STATES[state],
            *(_us_interval(one[key]) for key in ("ns", "p50_ns", "p99_ns")),
            _us(one["worst_ns"]),
            _us(one["spun_worst_ns"]),
            f"{one['slept']:,}",
            f"{one['dropped_percent']} %",
        ]
        for state, one in states.items()
    ]
    header = ["", "mean", "p50", "p99", "worst", "worst of no client", "calls that slept", "messages dropped"]
    return f"""## The client

What `tailspan.client` takes from the worker's thread for one request with a trace context, three spans, a queue
span and batch facts, in µs: medians of {figures["rounds"]} rounds in turn, with their intervals; the worst of all
{states[UP]["calls"]:,} calls of a state. *No client*: as many calls, in between, of a function that passes
{SPIN_NS // 1000} µs and nothing else.

{table(header, rows)}

A call that waits for anything leaves the CPU by itself, and the kernel counts that: *calls that slept*. What the
worst call of no client took is the scheduler's doing, which gave the CPU to others.

An asyncio callback that is watched takes {callback["ns"]:,} ns more than one that is not
({callback["unwatched_ns"]:,} ns). A garbage collection that is timed takes {collection["ns"]:,} ns more, whatever
it finds; one of the youngest generation takes {collection["untimed_ns"]:,} ns, and collects hundreds of objects.
Those of a millisecond or more are sent with the next message. `connect()` takes {connecting["first_ms"]:.1f} ms
once, with an agent that listens (again in the same process: {connecting["ms"]:.1f} ms), most of it to find where
the interpreter keeps its own lock.

What bounds it: packing the message and one system call. There is no lock, no thread and no retry; a message
that the socket does not take at once is dropped and counted. With the agent absent there is nothing to pack: it is
looked for once a second. A flood has its own socket and its own budget in the agent: what it takes from others is
CPU time."""


def _us(ns: float) -> str:
    return f"{ns / 1000:.1f}"


def _us_interval(figure: Figures) -> str:
    return f"{_us(figure['median'])} [{_us(figure['low'])}, {_us(figure['high'])}]"
