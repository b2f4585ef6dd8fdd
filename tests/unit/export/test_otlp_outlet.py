from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tailspan.export.otlp.breaker import Breaker, State
from tailspan.export.otlp.outlet import Outlet
from tailspan.export.otlp.record import Batch
from tailspan.export.otlp.spool import Spool
from tailspan.export.otlp.transport import UNREACHABLE, Accepted, Answer, Failed, Refused
from tailspan.wire.otlp import Origin, Signal
from tests.conftest import eventually

MIB = 1 << 20


class Backend:
    """Answers as it is told. ``send`` waits while ``gate`` is closed."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)  # one after the other; the last one from then on
        self.taken: list[bytes] = []
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()
        self.closed = threading.Event()

    def send(self, payload: bytes, is_json: bool) -> Answer:
        self.calls += 1
        while not self.gate.wait(0.01):
            if self.closed.is_set():
                return Failed(UNREACHABLE)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Accepted):
            self.taken.append(payload)
        return answer

    def close(self) -> None:
        self.closed.set()


def _batch(number: int, items: int = 1, **more: object) -> Batch:
    return Batch(b"%d" % number, items, **{"origin": Origin.OWN, **more})  # type: ignore[arg-type]


@contextmanager
def _running(backend: Backend, folder: Path, breaker: Breaker | None = None) -> Iterator[Outlet]:
    outlet = Outlet(Signal.TRACES, backend, Spool(folder, MIB), breaker or _hasty())
    try:
        yield outlet
    finally:
        _close(outlet)


def _hasty() -> Breaker:
    return Breaker(dice=lambda: 0.0)


def _close(outlet: Outlet, flush_s: float = 10.0, end_s: float = 20.0) -> None:
    now_s = time.monotonic()
    outlet.close(now_s + flush_s, now_s + end_s)


def test_what_is_put_is_delivered_in_order_and_counted(tmp_path: Path) -> None:
    backend = Backend(Accepted())
    with _running(backend, tmp_path / "spool") as outlet:
        for n in range(23):
            outlet.put(_batch(n, items=3, verdicts=2))
        outlet.put(Batch(b"{}", 7, Origin.FORWARDED, is_json=True))
        eventually(lambda: not outlet.stats().queued_items, "all is delivered")

        stats = outlet.stats()
        assert backend.taken == [*(b"%d" % n for n in range(23)), b"{}"]
        assert stats.items == {Origin.OWN: 69, Origin.FORWARDED: 7}
        assert stats.verdicts == 46
        assert stats.sent_bytes == sum(len(payload) for payload in backend.taken)
        assert (stats.limit_bytes, stats.queued_bytes, stats.age_s) == (MIB, 0, 0)
        assert not stats.dropped and not stats.failures


@pytest.mark.parametrize("failure", [Failed("http_503"), OSError("a library's own")])
def test_what_failed_is_sent_again_before_what_came_later(tmp_path: Path, failure: Failed | Exception) -> None:
    backend = Backend(failure, failure, Accepted())
    with _running(backend, tmp_path / "spool") as outlet:
        outlet.put(_batch(1))
        outlet.put(_batch(2))
        eventually(lambda: outlet.stats().items[Origin.OWN] == 2, "both are delivered")
        assert backend.taken == [b"1", b"2"]
        assert outlet.stats().failures.total() == 2
        assert outlet.stats().breaker is State.CLOSED


def test_what_is_refused_is_counted_and_the_next_one_sent(tmp_path: Path) -> None:
    backend = Backend(Refused("HTTP 400"), Accepted())
    with _running(backend, tmp_path / "spool") as outlet:
        outlet.put(_batch(1, items=23, origin=Origin.FORWARDED))
        outlet.put(_batch(2, items=5, verdicts=1))
        eventually(lambda: not outlet.stats().queued_items, "both are settled")
        stats = outlet.stats()
        assert backend.taken == [b"2"]
        assert stats.dropped == {(Origin.FORWARDED, "refused"): 23}
        assert stats.items == {Origin.OWN: 5}
        assert (stats.verdicts, stats.failures) == (1, Counter())


@pytest.mark.parametrize(("rejected", "delivered"), [(3, 20), (23, 0), (99, 0)])
def test_of_a_partial_success_the_rejected_items_are_counted(
    tmp_path: Path, rejected: int, delivered: int
) -> None:
    backend = Backend(Accepted(rejected, "too old"))
    with _running(backend, tmp_path / "spool") as outlet:
        outlet.put(_batch(1, items=23, verdicts=2))
        eventually(lambda: not outlet.stats().queued_items, "it is settled")
        stats = outlet.stats()
        assert stats.items[Origin.OWN] == delivered
        assert stats.dropped == {(Origin.OWN, "rejected"): 23 - delivered}
        assert stats.verdicts == (2 if delivered else 0)
        assert stats.dropped_verdicts.total() == (0 if delivered else 2)


def test_while_the_backend_is_away_the_breaker_is_open_and_what_waits_grows_old(tmp_path: Path) -> None:
    backend = Backend(Failed(UNREACHABLE))
    with _running(backend, tmp_path / "spool", Breaker(dice=lambda: 1.0)) as outlet:
        outlet.put(_batch(1, items=23))
        eventually(lambda: outlet.stats().breaker is State.OPEN, "it is noticed")
        eventually(lambda: outlet.stats().age_s > 0.1, "it grows old")
        stats = outlet.stats()
        assert stats.queued_items == 23
        assert stats.queued_bytes > 0
        assert stats.failures == {UNREACHABLE: 1}


def test_ten_minutes_without_a_backend_lose_nothing_and_do_not_besiege_it(tmp_path: Path) -> None:
    # GIVEN a backend that is away, by a clock of the test's own
    now = [1000.0]
    backend = Backend(Failed(UNREACHABLE))
    breaker = Breaker(lambda: now[0], random.Random(23).random)
    with _running(backend, tmp_path / "spool", breaker) as outlet:
        # WHEN a batch comes each second for ten minutes
        for second in range(600):
            outlet.put(_batch(second))
            now[0] += 1
        attempts = backend.calls
        assert outlet.stats().queued_items == 600

        # AND it comes back
        backend.answers = [Accepted()]
        now[0] += 60
        outlet.put(_batch(600))

        # THEN all arrive, once and in order
        eventually(lambda: not outlet.stats().queued_items, "all is delivered", 60)
        assert backend.taken == [b"%d" % second for second in range(601)]
        assert outlet.stats().items == {Origin.OWN: 601}
        assert not outlet.stats().dropped
    assert attempts < 100


def test_close_delivers_what_the_backend_takes(tmp_path: Path) -> None:
    backend = Backend(Accepted())
    backend.gate.clear()
    outlet = Outlet(Signal.TRACES, backend, Spool(tmp_path / "spool", MIB))
    for n in range(23):
        outlet.put(_batch(n))
    backend.gate.set()
    _close(outlet)
    assert len(backend.taken) == 23
    assert outlet.stats().queued_items == 0


def _away(backend: Backend) -> None:
    backend.answers = [Failed(UNREACHABLE)]


def _silent(backend: Backend) -> None:
    backend.gate.clear()


@pytest.mark.parametrize("how", [_away, _silent])
def test_close_keeps_its_time_and_what_waits_for_the_next_start(
    tmp_path: Path, how: Callable[[Backend], None]
) -> None:
    # GIVEN 23 that a dead backend does not take
    backend = Backend(Accepted())
    how(backend)
    outlet = Outlet(Signal.TRACES, backend, Spool(tmp_path / "spool", MIB), Breaker(dice=lambda: 1.0))
    for n in range(23):
        outlet.put(_batch(n))
    eventually(lambda: backend.calls, "one is on its way")

    # WHEN it is closed with a second
    before_s = time.monotonic()
    _close(outlet, 0.7, 1.0)

    # THEN it keeps to it, says that they are queued, and no thread of it is left
    assert time.monotonic() - before_s < 5
    assert (outlet.stats().queued_items, outlet.stats().dropped) == (23, Counter())
    eventually(lambda: "tailspan-otlp-traces" not in {t.name for t in threading.enumerate()}, "its thread ends")

    # AND the next start delivers them without being asked to
    backend = Backend(Accepted())
    with _running(backend, tmp_path / "spool") as outlet:
        eventually(lambda: outlet.stats().items[Origin.OWN] == 23, "all is delivered")
    assert backend.taken == [b"%d" % n for n in range(23)]


def test_no_thread_before_there_is_something_to_send(tmp_path: Path) -> None:
    with _running(Backend(Accepted()), tmp_path / "spool"):
        assert "tailspan-otlp-traces" not in {thread.name for thread in threading.enumerate()}
