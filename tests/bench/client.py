"""What the client costs a worker, per request: agent up, absent, or stopped (it never reads). ns, best of rounds.
And once: to connect; and for each garbage collection: to time it.

A request here is one context with a traceparent, three spans, a queue span and batch facts: what the reference
worker sends. Compared with the same loop around an empty function. The best round is the one that was disturbed
least; noise between runs is 5 to 10 %, more where the peer that reads shares a CPU with the worker.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tailspan.client
from tailspan.client import Client
from tests.bench.page import table
from tests.bench.spread import Figures

REQUESTS = 5_000
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


def serve_plainly(_: Client) -> None:
    """The loop and the call that every figure contains."""


def ns_per_request(client: Client, rounds: int, one: Callable[[Client], None] = serve) -> float:
    found = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(REQUESTS):
            one(client)
        found.append((time.perf_counter_ns() - start) / REQUESTS)
    return min(found)


class Agent:
    """A child process that accepts and drains; ``stopped``: it was sent SIGSTOP and reads nothing."""

    def __init__(self, path: Path, stopped: bool = False) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(path))
        listener.listen(4)
        self.pid = os.fork()
        if self.pid == 0:
            peer, _ = listener.accept()
            while peer.recv(1 << 16):
                pass
            os._exit(0)
        listener.close()
        if stopped:
            os.kill(self.pid, signal.SIGSTOP)
            os.waitpid(self.pid, os.WUNTRACED)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def with_agent(folder: Path, rounds: int, stopped: bool) -> Figures:
    path = folder / ("stopped.sock" if stopped else "up.sock")
    agent = Agent(path, stopped)
    client = tailspan.client.connect("bench", path=path)
    try:
        cost = ns_per_request(client, rounds)
        return {"ns": round(cost), "dropped_percent": round(100 * client.dropped / (REQUESTS * rounds), 2)}
    finally:
        client.close()
        agent.end()


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
    rounds = 2 if quick else 7
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        connecting = of_connecting(folder, rounds)  # before any other: the first is what a worker sees
        collection = of_collections(folder, rounds)
        absent = tailspan.client.connect("bench", path=folder / "absent.sock")
        figures = {
            "empty_loop": {"ns": round(ns_per_request(absent, rounds, serve_plainly))},
            "agent_up": with_agent(folder, rounds, stopped=False),
            "agent_absent": {"ns": round(ns_per_request(absent, rounds))},
            "agent_stopped": with_agent(folder, rounds, stopped=True),
            "asyncio_callback": of_the_loop(folder, rounds),
            "connecting": connecting,
            "collection": collection,
        }
        absent.close()
    return {"rounds": rounds, "requests_per_round": REQUESTS, **figures}


def render(figures: Figures) -> str:
    up, absent, stopped = (figures[name] for name in ("agent_up", "agent_absent", "agent_stopped"))
    callback, collection, connecting = (figures[name] for name in ("asyncio_callback", "collection", "connecting"))
    rows = [
        ["agent up", _us(up["ns"]), f"{up['dropped_percent']} %"],
        ["agent absent", _us(absent["ns"]), "all"],
        ["agent stopped, never reads", _us(stopped["ns"]), f"{stopped['dropped_percent']} %"],
        ["an empty function instead", _us(figures["empty_loop"]["ns"]), ""],
    ]
    return f"""## The client

What `tailspan.client` takes from the worker's thread for one request with a trace context, three spans, a queue
span and batch facts; best of {figures["rounds"]} rounds of {figures["requests_per_round"]:,} requests, as fast
as one thread can make them.

{table(["", "µs a request", "messages dropped"], rows)}

An asyncio callback that is watched takes {callback["ns"]:,} ns more than one that is not
({callback["unwatched_ns"]:,} ns). A garbage collection that is timed takes {collection["ns"]:,} ns more, whatever
it finds; one of the youngest generation takes {collection["untimed_ns"]:,} ns, and collects hundreds of objects.
Those of a millisecond or more are sent with the next message. `connect()` takes {connecting["first_ms"]:.1f} ms
once, with an agent that listens (again in the same process: {connecting["ms"]:.1f} ms), most of it to find where
the interpreter keeps its own lock.

What bounds it: packing the message and one system call. There is no lock, no thread and no retry; a message
that the socket does not take at once is dropped and counted. This loop sends far faster than any worker serves:
what is dropped here with the agent up is what a reader that shares its CPU could not keep up with."""


def _us(ns: int) -> str:
    return f"{ns / 1000:.1f}"
