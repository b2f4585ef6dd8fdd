"""Which request an event loop worked for: steps longer than a floor, told in time."""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio.events import Handle
from collections.abc import Callable

import pytest

from tailspan.client import Client
from tailspan.wire.spans import Activation, ActivationKind, Message, Request, SpanKind

from .listener import Listener, Peer

#: The floor here: nothing that a test does not do on purpose takes as long, unless the machine stands still.
FLOOR_NS = 20_000_000


def work() -> None:
    """Keep the thread on the CPU for longer than the floor."""
    end = time.monotonic_ns() + FLOOR_NS + 1_000_000
    while time.monotonic_ns() < end:
        pass


def owner_of(request: Request) -> int:
    return int.from_bytes(request.span_id, "big")


def steps(messages: list[Message]) -> list[Activation]:
    found = [m for m in messages if isinstance(m, Activation)]
    assert all(s.kind == ActivationKind.STEP and s.tid == threading.get_native_id() for s in found)
    return found


def requests(messages: list[Message]) -> dict[str, Request]:
    return {m.name: m for m in messages if isinstance(m, Request)}


@pytest.fixture
def watched(client_and_peer: tuple[Client, Peer]) -> tuple[Client, Peer]:
    client_and_peer[0].watch_asyncio(FLOOR_NS)
    return client_and_peer


def test_a_long_step_belongs_to_the_request_it_worked_for(watched: tuple[Client, Peer]) -> None:
    client, peer = watched

    async def serve(name: str, busy: bool) -> None:
        with client.request(name):
            await asyncio.sleep(0)
            if busy:
                work()
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(serve("busy", True), serve("waits", False))

    asyncio.run(main())
    messages = peer.waiting()
    served = requests(messages)
    assert all(r.asynchronous and r.tid == threading.get_native_id() for r in served.values())
    (step,) = steps(messages)
    assert step.owner == owner_of(served["busy"])
    assert step.end_mono_ns - step.start_mono_ns > FLOOR_NS
    assert "serve" in step.name
    # AND the one that waited meanwhile can be told why
    assert served["waits"].start_mono_ns <= step.start_mono_ns < step.end_mono_ns <= served["waits"].end_mono_ns


def test_the_last_step_of_a_request_is_known_before_the_request(watched: tuple[Client, Peer]) -> None:
    client, peer = watched

    async def main() -> None:
        with client.request("r"):
            await asyncio.sleep(0)
            work()
        work()

    asyncio.run(main())
    last, request, rest = peer.waiting()
    assert isinstance(last, Activation)
    assert isinstance(request, Request)
    assert isinstance(rest, Activation)
    # THEN its own part of the callback is its own, up to its end, and the rest of that callback is nobody's
    assert last.owner == owner_of(request)
    assert last.start_mono_ns < request.end_mono_ns <= last.end_mono_ns <= rest.start_mono_ns
    assert rest.owner == 0


def test_what_a_callback_did_before_the_request_began_is_not_its_own(watched: tuple[Client, Peer]) -> None:
    client, peer = watched

    async def main() -> None:
        work()
        with client.request("r"):
            work()

    asyncio.run(main())
    before, own, request = peer.waiting()
    assert isinstance(before, Activation)
    assert isinstance(own, Activation)
    assert isinstance(request, Request)
    assert (before.owner, own.owner) == (0, owner_of(request))
    assert before.end_mono_ns <= own.start_mono_ns


def test_a_child_task_and_a_plain_callback_work_for_the_request_that_made_them(
    watched: tuple[Client, Peer],
) -> None:
    client, peer = watched

    async def child() -> None:
        await asyncio.sleep(0)
        work()

    async def main() -> None:
        with client.request("r"):
            asyncio.get_running_loop().call_soon(work)
            await asyncio.create_task(child())
        asyncio.get_running_loop().call_soon(work)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    messages = peer.waiting()
    owner = owner_of(requests(messages)["r"])
    assert sorted((s.owner == owner, s.name.rsplit(".")[-1]) for s in steps(messages)) == [
        (False, "work"),
        (True, "child"),
        (True, "work"),
    ]


def test_a_nested_request_gives_the_loop_back_to_the_outer_one(watched: tuple[Client, Peer]) -> None:
    client, peer = watched

    async def main() -> None:
        with client.request("outer"):
            with client.request("inner"):
                pass
            await asyncio.sleep(0)
            work()
            await asyncio.sleep(0)

    asyncio.run(main())
    messages = peer.waiting()
    (step,) = steps(messages)
    assert step.owner == owner_of(requests(messages)["outer"])


def test_a_short_step_is_not_sent(watched: tuple[Client, Peer]) -> None:
    client, peer = watched

    async def main() -> None:
        for _ in range(23):
            with client.request("r"):
                await asyncio.sleep(0)

    asyncio.run(main())
    messages = peer.waiting()
    assert [type(m) for m in messages] == [Request] * 23


def test_a_span_that_awaited_is_told_from_one_that_worked(watched: tuple[Client, Peer]) -> None:
    client, peer = watched

    async def main() -> None:
        with client.request("r") as request:
            await asyncio.sleep(0)
            with request.span("works"):
                pass
            with request.span("awaits"):
                await asyncio.sleep(0)
            with request.span("threads"):
                await asyncio.to_thread(in_thread, request.span("in thread"))

    def in_thread(span: object) -> None:
        with span:  # type: ignore[attr-defined]
            pass

    asyncio.run(main())
    spans = {s.name: s for s in requests(peer.waiting())["r"].spans}
    loop = threading.get_native_id()
    assert (spans["works"].kind, spans["works"].tid) == (SpanKind.SYNC, loop)
    assert (spans["awaits"].kind, spans["awaits"].tid) == (SpanKind.AWAIT, loop)
    assert (spans["threads"].kind, spans["threads"].tid) == (SpanKind.AWAIT, loop)
    assert spans["in thread"].kind == SpanKind.SYNC
    assert spans["in thread"].tid != loop


def test_without_a_watch_no_span_of_a_coroutine_is_claimed_for_its_thread(
    client_and_peer: tuple[Client, Peer],
) -> None:
    client, peer = client_and_peer

    async def main() -> None:
        with client.request("r") as request, request.span("s"):
            await asyncio.sleep(0)

    asyncio.run(main())
    request = peer.expect(Request)
    assert request.asynchronous
    assert [s.kind for s in request.spans] == [SpanKind.AWAIT]


def test_a_request_on_a_thread_beside_a_loop_is_not_asynchronous(watched: tuple[Client, Peer]) -> None:
    client, peer = watched

    def serve() -> None:
        with client.request("r"):
            pass

    async def main() -> None:
        await asyncio.to_thread(serve)

    asyncio.run(main())
    assert not peer.expect(Request).asynchronous


def test_an_error_in_a_callback_reaches_the_loop_as_ever(watched: tuple[Client, Peer]) -> None:
    seen = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(context["exception"]))
        loop.call_soon(lambda: 1 // 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert [type(e) for e in seen] == [ZeroDivisionError]


def test_a_second_watch_takes_the_place_of_the_first(
    listener: Listener, connect: Callable[[], Client], client_and_peer: tuple[Client, Peer]
) -> None:
    first, first_peer = client_and_peer
    second = connect()
    second_peer, _ = listener.accept_and_greet()
    original = Handle._run
    first.watch_asyncio(FLOOR_NS)
    second.watch_asyncio(FLOOR_NS)

    async def main() -> None:
        work()

    asyncio.run(main())
    assert first_peer.waiting() == []
    assert len(steps(second_peer.waiting())) == 1
    # AND when it ends, asyncio is as it was
    first.close()
    assert Handle._run is not original
    second.close()
    assert Handle._run is original
