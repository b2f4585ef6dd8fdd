"""What the pipeline keeps of whose cgroup is whose; and that some ledgers stand for all, if they cost too much."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from tailspan import pipeline as module
from tailspan.config import load
from tailspan.export.prometheus import Metrics
from tailspan.export.pulse import Pulse
from tailspan.export.tally import Tally
from tailspan.pipeline import MIN_LEDGERS, Judged, Moment, Pipeline
from tailspan.publisher import Publisher
from tailspan.timeline.evidence import Meta
from tailspan.timeline.inbox import Received
from tailspan.wire.events import THREAD_EVENT
from tailspan.wire.spans import Hello, Request, Span, SpanKind
from tests.builders import MS, table
from tests.unit.export import exposed

TGID, TID, CGROUP, HOGS = 8100, 8123, 42, 43
PATHS = {CGROUP: "/docker/web", HOGS: "/system.slice/cron.service"}
IDENTITIES = {
    "/docker/web": {"container.name": "web", "container.id": "3f4e"},
    "/system.slice/cron.service": {"tailspan.systemd.unit": "cron.service"},
}

NOTHING_KNOWN = Moment(table("open_threads", rows=0), Meta(), lambda cgroup_id: "")


def identify(paths: Collection[str]) -> dict[str, dict[str, str]]:
    return {path: IDENTITIES[path] for path in paths if path in IDENTITIES}


def judged(said: dict[str, str], cgroup_id: int = CGROUP) -> Judged:
    """One request of a worker in a container, of which a cron job took the CPU for half a second."""
    pipeline = Pipeline(load(flags={"store.keep": "all"}, environ={}))
    look = table(
        "open_threads", rows=2, tid=[TID, TGID], tgid=TGID, ns_tid=[TID, TGID], cgroup_id=[HOGS, cgroup_id]
    )
    look["run_mono_ns"], look["taken_mono_ns"] = 700 * MS, 1001 * MS
    pipeline.threads.see(look)
    wait = table("cycles", tid=TID, tgid=TGID, off_mono_ns=200 * MS, ready_mono_ns=200 * MS, on_mono_ns=700 * MS)
    taken = table("slices", start_mono_ns=200 * MS, end_mono_ns=700 * MS)
    for column, value in {"tid": 9, "tgid": 9, "comm": b"backup", "cgroup_id": HOGS}.items():
        taken["runner"][column] = value
    pipeline.take({"cycles": wait, "slices": taken}, np.empty(0, THREAD_EVENT))
    request = Request(b"t" * 16, b"s" * 8, bytes(8), "1", "infer", TID, 100 * MS, 1000 * MS)
    messages = [Received(TGID, Hello(TGID, "web", "", said), 1), Received(TGID, request, 1000 * MS)]
    (found,) = pipeline.judge(
        messages, Moment(look, Meta(resources={str(TGID): said}), lambda i: PATHS.get(i, ""), identify)
    )
    return found


def test_a_worker_is_told_by_its_cgroup_and_what_it_says_itself_wins() -> None:
    resources = judged({"container.name": "said", "service.name": "web"}).evidence.meta.resources
    assert resources == {str(TGID): {"container.name": "said", "container.id": "3f4e", "service.name": "web"}}


@pytest.mark.parametrize("cgroup_id", [0, 7])
def test_of_a_cgroup_that_is_not_known_only_what_the_worker_says_is_kept(cgroup_id: int) -> None:
    assert judged({"service.name": "web"}, cgroup_id).evidence.meta.resources == {
        str(TGID): {"service.name": "web"}
    }
    assert judged({}, cgroup_id).evidence.meta.resources == {}


def test_the_culprits_unit_is_stored_with_the_evidence_and_in_the_verdict() -> None:
    found = judged({})
    assert found.evidence.meta.cgroups == {str(number): path for number, path in PATHS.items()}
    assert found.evidence.meta.identities == IDENTITIES
    assert "while backup (pid 9, unit cron.service) ran there" in found.verdicts[0].sentence


def many(name: str, count: int, slow: int = -1, wall_ms: int = 20) -> list[Received]:
    """So many requests of 20 ms, but for one of 200."""
    found = []
    for at in range(count):
        start, wall = (1000 + at) * MS, (200 if at == slow else wall_ms) * MS
        request = Request(b"t" * 16, at.to_bytes(8, "big"), bytes(8), "1", name, TID, start, start + wall)
        found.append(Received(TGID, request, start + wall))
    return found


def test_when_ledgers_cost_too_much_some_requests_stand_for_all_and_a_slow_one_still_gets_its_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "LEDGER_BUDGET_S", 1e-6)
    config = load(environ={}, flags={"store.path": str(tmp_path), "export.prometheus": ""})
    pipeline, metrics = Pipeline(config), Metrics()
    publisher = Publisher(config, "host", metrics, Tally(tmp_path / "tally"), Pulse())

    def published(messages: list[Received]) -> Judged:
        (found,) = pipeline.judge(messages, NOTHING_KNOWN)
        publisher.publish(found, lambda: None)
        return found

    def counted_s(name: str) -> float | None:
        return exposed.value(metrics, "tailspan_request_time_seconds_total", name=name, cause="unknown")

    published(many("often", 200))
    found = published(many("rare", 1) + many("often", 200, slow=190))
    assert len(found.sample) == MIN_LEDGERS and 0 not in found.sample
    assert (found.ledgers.sum(axis=1) == 20 * MS).all()
    assert found.kept.tolist() == [191] and len(found.verdicts) == 1
    assert counted_s("often") == pytest.approx((399 * 20 + 200) / 1e3)
    assert counted_s("rare") is None  # none of it was in the sample

    published(many("rare", 3))
    assert counted_s("rare") == pytest.approx(4 * 20 / 1e3)
    publisher.close()


def test_of_a_rush_every_request_is_kept_where_all_are_and_the_slow_ones_are_judged_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load(environ={}, flags={"store.path": str(tmp_path), "store.keep": "all", "export.prometheus": ""})
    pipeline, metrics = Pipeline(config), Metrics()
    publisher = Publisher(config, "host", metrics, Tally(tmp_path / "tally"), Pulse())
    list(pipeline.judge(many("often", 300) + many("long", 300, wall_ms=500), NOTHING_KNOWN))
    for budget in ("LEDGER_BUDGET_S", "VERDICT_BUDGET_S"):
        monkeypatch.setattr(module, budget, 1e-6)

    # all of "long" take longer than the one of "often" that is slow for its like
    rush = many("often", 200, slow=190) + many("long", 1_000, wall_ms=500)
    turns = list(pipeline.judge(rush, NOTHING_KNOWN))
    for turn in turns:
        publisher.publish(turn, lambda: None)
    publisher.close()

    assert sum(len(turn.kept) for turn in turns) == 1_200
    assert max(len(turn.kept) for turn in turns) <= module.MAX_KEPT
    assert all(len(turn.verdicts) == module.MIN_VERDICTS for turn in turns)
    assert 190 in turns[0].verdicts and np.flatnonzero(turns[0].slow).tolist() == [190]
    # AND a request that is not slow passes for none because it was not judged
    assert exposed.value(metrics, "tailspan_slow_requests_total", cause="none", outcome="unjudged") is None


def test_however_many_messages_come_at_once_each_request_has_its_own_spans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MESSAGES_AT_ONCE", 3)
    monkeypatch.setattr(module, "MAX_KEPT", 5)
    received = many("often", 23)
    for number, item in enumerate(received):
        assert isinstance(item.message, Request)
        start = item.message.start_mono_ns
        names = [f"{number} {nth}" for nth in range(number % 3)]
        item.message.spans = [Span(name, SpanKind.SYNC, 0, start, start + MS) for name in names]
    pipeline = Pipeline(load(environ={}, flags={"store.keep": "all"}))

    turns = list(pipeline.judge(received, NOTHING_KNOWN))

    assert [len(turn.requests) for turn in turns] == [5, 5, 5, 5, 3]
    told = []
    for turn in turns:
        evidence = turn.evidence
        for row in range(len(evidence.requests)):
            of_it = evidence.spans[evidence.spans["request"] == row]
            told.append([evidence.strings[name] for name in of_it["name"].tolist()])
    assert told == [[f"{number} {nth}" for nth in range(number % 3)] for number in range(23)]


def test_what_the_window_lets_go_of_is_lost_if_requests_reach_back_so_far() -> None:
    pipeline = Pipeline(load(environ={}, flags={"window.max_rows": "1000"}))
    rows = table("cycles", rows=600, tid=TID, tgid=TGID, on_mono_ns=5_000 * MS)

    def let_go(now_ms: int) -> int:
        for _ in range(2):
            pipeline.take({"cycles": rows}, np.empty(0, THREAD_EVENT))
        pipeline.evict(now_ms * MS)
        return int(pipeline.take_losses()["count"].sum())

    assert let_go(5_900) == 600  # a second ago: some request may have begun before that
    assert let_go(6_100) == 0
    assert len(pipeline.window.losses.cut(0, 5_000 * MS)) == 2  # a verdict that it touches says so all the same

    request = Request(b"t" * 16, b"s" * 8, bytes(8), "1", "infer", TID, 1_000 * MS, 6_000 * MS)
    list(pipeline.judge([Received(TGID, request, 6_000 * MS)], NOTHING_KNOWN))
    assert let_go(6_200) == 1200
