"""Whether all is accounted for: a request counts as judged also where the metric had no room for its name."""

from __future__ import annotations

import pytest

from tests.chaos.books import ROUTE, Books, owing, unjudged

JUDGED = 'tailspan_request_duration_seconds_count{name="%s"}'
REFUSED = 'tailspan_dropped_messages_total{reason="backlog"}'


def books(made: int = 0, dropped: int = 0, **metrics: float) -> Books:
    named = {"judged": JUDGED % ROUTE, "flood": JUDGED % "flood", "other": JUDGED % "other", "refused": REFUSED}
    return Books(made, made, dropped, 0, 0.0, {named[key]: value for key, value in metrics.items()})


@pytest.mark.parametrize(
    ("metrics", "missing"),
    [
        ({"judged": 17}, 4),
        ({"judged": 17, "refused": 4}, 0),
        ({"judged": 17, "other": 4}, 0),
        ({"judged": 17, "other": 1, "refused": 1}, 2),
    ],
)
def test_what_the_worker_sent_is_judged_refused_or_missing(metrics: dict[str, float], missing: int) -> None:
    assert (
        unjudged(books(100, judged=77), books(123, dropped=2, **{"judged": 77 + metrics.pop("judged")} | metrics))
        == missing
    )


def test_what_strangers_sent_is_judged_refused_or_owed() -> None:
    owed = {"flood": 31}
    assert owing(owed, books(flood=23)) == {"flood": 8}
    assert owing(owed, books(flood=23, other=3, refused=4)) == {"flood": 1}
    assert owing(owed, books(flood=23, other=8)) == {}
