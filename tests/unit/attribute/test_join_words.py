"""A verdict says how its request's thread is known, and how well the trace fits together."""

from __future__ import annotations

import numpy as np
import pytest

from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import Outcome, Verdict
from tailspan.timeline.cut import narrow
from tailspan.timeline.tables import Join
from tests.timelines import Timeline

TID = 1
NO_BASELINE = 1  #: note that each of these verdicts has


def verdict(**fields: object) -> Verdict:
    """Of a request of 50 ms that waited 40 of them for a CPU."""
    t = Timeline()
    t.request(0, 50, **({"tid": TID} | fields))  # type: ignore[arg-type]
    t.waits(TID, 5, 45, cpu=0)
    t.slice(0, 5, 45, tgid=900, comm="neighbour")
    return judge(t.evidence())[0]


def test_where_the_worker_said_its_thread_and_all_spans_fit_there_is_nothing_to_say() -> None:
    found = verdict()

    assert (found.request.join, found.request.broken) == ("said", 0)
    assert len(found.trust.notes) == NO_BASELINE


@pytest.mark.parametrize(
    ("join", "name", "words"),
    [(Join.SOCKET, "socket", "it read the request"), (Join.PROCESS, "process", "the most")],
)
def test_an_inferred_thread_is_told_with_its_reason(join: Join, name: str, words: str) -> None:
    found = verdict(join=join)

    assert found.request.join == name
    assert found.outcome is Outcome.NAMED
    assert "the thread was inferred" in found.trust.notes[0]
    assert words in found.trust.notes[0]


def test_who_did_the_most_of_a_process_is_less_sure_than_who_read_the_request() -> None:
    said, socket, process = (verdict(join=join).confidence for join in (Join.SAID, Join.SOCKET, Join.PROCESS))

    assert 0 < process < socket == said


def test_no_thread_is_inconclusive_and_says_why() -> None:
    found = verdict(tid=0, join=Join.NONE)

    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.sentence == "Inconclusive: 50.0 of 50.0 ms could not be seen (its thread is not known)."
    assert "not known" in found.trust.notes[0]
    assert (found.request.join, found.trust.coverage, found.confidence) == ("none", 0, 0)


@pytest.mark.parametrize(
    ("lost", "why"), [(0, "its thread was not followed then"), (7, "7 records lost in its window")]
)
def test_a_thread_of_which_nothing_was_seen_is_inconclusive_and_says_why(lost: int, why: str) -> None:
    t = Timeline()
    t.request(0, 50, TID)
    if lost:
        t.loss(10, 20, lost)
    (found,) = judge(t.evidence())

    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.sentence == f"Inconclusive: 50.0 of 50.0 ms could not be seen ({why})."


@pytest.mark.parametrize(
    ("others", "words"), [(1, "another request meanwhile"), (3, "3 other requests meanwhile")]
)
def test_other_requests_of_an_inferred_thread_cannot_be_told_apart(others: int, words: str) -> None:
    assert words in verdict(join=Join.SOCKET, others=others).trust.notes[1]


@pytest.mark.parametrize(
    ("broken", "words"), [(1, "1 span of its trace does not fit"), (2, "2 spans of its trace do not")]
)
def test_spans_that_do_not_fit_are_told(broken: int, words: str) -> None:
    found = verdict(broken=broken)

    assert found.request.broken == broken
    assert words in found.trust.notes[0]


def test_how_a_later_version_knows_a_thread_is_shown_as_a_number() -> None:
    assert verdict(join=77).request.join == "77"


def test_what_is_said_of_the_thread_survives_storing() -> None:
    t = Timeline()
    t.request(0, 50, TID, join=Join.SOCKET, others=2, broken=1)
    t.request(10, 20, TID)
    t.runs(TID)
    whole = t.evidence()

    assert judge(narrow(whole, np.array([0]))) == judge(whole)[:1]
