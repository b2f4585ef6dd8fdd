"""Narrowed evidence gives the verdicts of the whole."""

import numpy as np

from tailspan.attribute.judge import AT_ONCE, judge
from tailspan.attribute.ledger import account, ledgers
from tailspan.timeline.cut import narrow
from tests.timelines import Timeline

HANDLER, OTHER = 1, 2


def test_a_thread_that_serves_somebody_else_is_no_pool_thread_after_narrowing() -> None:
    # GIVEN two handlers; the second was woken by the first (it took the lock it released) and got no CPU
    t = Timeline()
    t.request(0, 50, HANDLER, name="a")
    t.request(5, 60, OTHER, name="b")
    t.runs(HANDLER)
    t.blocks(OTHER, 5, 10, 35, waker=HANDLER)
    whole = t.evidence()

    # WHEN only the first one's evidence is kept
    kept = narrow(whole, np.array([0]))

    # THEN its ledger is what it was: its own work
    assert np.array_equal(ledgers(account(kept), 1)[0], ledgers(account(whole), 2)[0])


def test_many_verdicts_at_once_are_those_of_one_at_a_time() -> None:
    t = Timeline()
    for index in range(AT_ONCE + 23):
        t.request(index, index + 40, 1 + index % 3, name="a")
    for thread in (1, 2, 3):
        for at in range(0, 90, 7):
            t.waits(thread, at + thread, at + thread + 2, cpu=0)
    whole = t.evidence()

    assert judge(whole) == [judge(whole, np.array([row]))[0] for row in range(len(whole.requests))]


def test_verdicts_of_kept_requests_do_not_change_and_strings_still_mean_the_same() -> None:
    t = Timeline()
    for index in range(12):
        t.request(index * 10, index * 10 + 8, 1 + index % 3, name=f"GET /{index}", model=f"m{index % 2}")
        t.span(index, f"span {index}", index * 10 + 1, index * 10 + 6, 1 + index % 3)
    for thread in (1, 2, 3):
        for at in range(0, 120, 7):
            t.waits(thread, at + thread, at + thread + 2, cpu=0)
    for at in range(0, 120, 3):
        t.slice(0, at, at + 3, tgid=900 + at % 2, comm="neighbour")
    t.loss(33, 35, 17)
    whole = t.evidence()

    keep = np.array([1, 3, 4, 11])
    narrowed = narrow(whole, keep)

    assert judge(narrowed) == [judge(whole)[index] for index in keep]
    assert len(narrowed.cycles) < len(whole.cycles)
    assert len(narrowed.strings) < len(whole.strings)


def test_choosing_some_requests_gives_their_verdicts() -> None:
    t = Timeline()
    for index in range(5):
        t.request(index * 10, index * 10 + 8, 1)
    t.runs(1)
    evidence = t.evidence()

    assert judge(evidence, np.array([0, 3])) == [judge(evidence)[0], judge(evidence)[3]]
