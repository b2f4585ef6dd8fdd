"""Whether all that was sent is accounted for: judged, or counted by who lost it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tailspan.attribute.judge import judge
from tailspan.errors import NotFoundError, SegmentError
from tailspan.export.local import Entry, SegmentReader
from tailspan.export.semconv import OTHER
from tests.chaos.agent import Metrics, total
from tests.chaos.scene import Scene, until

#: The reference worker's requests, as it names them.
ROUTE = "POST /v1/infer"
#: Why the agent may refuse a message that is right, and counts it.
REFUSALS = ("over_budget", "backlog", "judge_failed", "closed", "too_many_connections")
#: Counters of what is lost, and what they are called here.
LOSSES = {
    "tailspan_lost_records_total": "record",
    "tailspan_dropped_messages_total": "message",
    "tailspan_export_dropped_total": "verdict",
    "tailspan_otlp_dropped_items_total": "otlp",
    "tailspan_otlp_refused_total": "otlp refused",
    "tailspan_forgotten_requests_total": "forgotten",
}
#: Blocks of evidence that are judged again after a fault.
MAX_BLOCKS = 20
#: Readings in turn, hundredths of a second apart, that say the same once the agent has nothing left to judge.
SAME = 25

_BALANCED_S = 20.0


@dataclass(frozen=True, slots=True)
class Books:
    """All counters at a moment at which nothing was in flight."""

    asked: int  #: by the load
    made: int  #: by the worker's client
    dropped: int  #: requests of them, by the client
    client_dropped: int  #: messages of any kind, by the client
    longest_call_ms: float  #: of the worker into the client, since the books before
    metrics: Metrics

    def judged(self, name: str = ROUTE) -> int:
        return round(total(self.metrics, "tailspan_request_duration_seconds_count", name=name))

    def refused(self, *reasons: str) -> int:
        return round(sum(total(self.metrics, "tailspan_dropped_messages_total", reason=why) for why in reasons))

    def heard_lost(self) -> int:
        """Messages that the agent knows to be lost: dropped by clients, unread in an agent before it."""
        return round(total(self.metrics, "tailspan_lost_records_total", **{"class": "client_message"}))

    def lost(self) -> dict[str, int]:
        """Everything that the agent counts as lost: the counter's short name and its labels' values."""
        found: dict[str, int] = {}
        for series, value in self.metrics.items():
            family, _, labels = series.partition("{")
            if value and family in LOSSES:
                found[" ".join([LOSSES[family], *labels.split('"')[1::2]])] = round(value)
        return found


def take(scene: Scene, since: Books | None = None) -> Books:
    """Pauses the load; the caller lets it go on. Waits until they balance, or for a while.

    ``since``: of the same agent; None where there are none, and nothing is known to balance with.
    """
    asked = scene.load.pause()
    books = _read(scene, asked)
    longest_ms, last = books.longest_call_ms, [-1] * SAME

    def balanced() -> bool:
        nonlocal books, longest_ms
        books = _read(scene, asked)
        longest_ms = max(longest_ms, books.longest_call_ms)
        last.append(books.judged())
        if since is None:
            return len(set(last[-SAME:])) == 1
        return not (unjudged(since, books) > 0 or owing(scene.owed, books))

    until(balanced, _BALANCED_S)
    return Books(asked, books.made, books.dropped, books.client_dropped, longest_ms, books.metrics)


def unjudged(before: Books, after: Books) -> int:
    """Requests that the worker has sent to one and the same agent, and that it has neither judged nor refused."""
    sent = after.made - before.made - (after.dropped - before.dropped)
    return sent - (after.judged() - before.judged()) - (_nameless(after) - _nameless(before))


def owing(owed: Mapping[str, int], books: Books) -> dict[str, int]:
    """Requests of strangers that the agent has neither judged nor refused, since it began."""
    short = {name: sent - books.judged(name) - _nameless(books) for name, sent in owed.items()}
    return {name: count for name, count in short.items() if count > 0}


def _nameless(books: Books) -> int:
    """Requests that are refused, or judged when the metric had no room left for what their route was slow of."""
    return books.refused(*REFUSALS) + books.judged(OTHER)


def _read(scene: Scene, asked: int) -> Books:
    told = scene.worker.told()
    metrics = scene.agent.metrics()
    return Books(
        asked,
        int(told["requests"]),
        int(told["requests_dropped"]),
        int(told["dropped"]),
        told["longest_call_ms"],
        metrics,
    )


class Stored:
    """What the agent stores, read as it comes."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._seen: set[tuple[Path, int]] = set()
        self._spans: set[str] = set()
        self.corrupt: list[str] = []

    def spans(self) -> int:
        """Requests of the reference worker that were stored, since this was made."""
        return len(self._spans)

    def news(self) -> tuple[int, list[str]]:
        """How many verdicts were judged again of what is new, and what is wrong with them."""
        reader = SegmentReader(self._store)
        try:
            entries = [entry for entry in reader.rows() if (entry.path, entry.offset) not in self._seen]
        except NotFoundError:
            return 0, []
        self.corrupt = list(reader.corrupt)
        blocks = {(entry.path, entry.offset): entry for entry in entries}
        self._seen |= blocks.keys()
        self._spans |= {entry.row.span_id for entry in entries if entry.row.name == ROUTE}
        verdicts, wrong = 0, []
        for entry in list(blocks.values())[:MAX_BLOCKS]:
            count, found = _judged(reader, entry)
            verdicts += count
            wrong += found
        return verdicts, wrong


def _judged(reader: SegmentReader, entry: Entry) -> tuple[int, list[str]]:
    try:
        verdicts = judge(reader.load(entry))
    except (NotFoundError, SegmentError) as error:
        return 0, [] if isinstance(error, NotFoundError) else [f"evidence is damaged: {error}"]
    wrong = []
    for verdict in verdicts:
        parts, wall = sum(part.ns for part in verdict.ledger), verdict.request.wall_ns
        if parts != wall:
            wrong.append(f"request {verdict.request.span_id}: a ledger of {parts} ns, {wall} ns long")
    return len(verdicts), wrong
