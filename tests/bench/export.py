"""What leaves the host: spans and bytes of a verdict, and what it costs to make, keep and send them.

The verdicts are real. A worker under load is slowed down twice beside a running agent: by a neighbour that takes
its CPUs, then by more requests than it can serve. What the agent stored is judged again here, turned into spans,
spooled to disk and sent to a receiver in another process that takes everything and keeps nothing. CPU time is
this process's, all threads of it; the receiver's is not in it.

What a worker's own spans cost when they are forwarded is measured on the spans of the same requests, as the
OpenTelemetry SDK would send them.

Noise: sizes differ by 20 % from run to run, since no two slow requests are alike; CPU times by 10 %.
"""

from __future__ import annotations

import gzip
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan

from tailspan.attribute.judge import judge
from tailspan.errors import TailspanError
from tailspan.export.local import SegmentReader
from tailspan.export.segment import IndexRow, encode_block
from tailspan.export.verdict_spans import MAX_EVENTS
from tailspan.timeline.evidence import Evidence
from tailspan.worker.demo import running
from tests.bench import serving, sizing
from tests.bench.page import number, span, table
from tests.bench.sending import SDK_BATCH, Judged, encoded, verdicts_sent, workers_spans_sent
from tests.bench.spread import Figures, spread

NEIGHBOUR, OVERLOAD = "neighbour", "overload"
SITUATIONS = {NEIGHBOUR: "a neighbour takes the CPU", OVERLOAD: "more requests than it can serve"}
#: Protocol and compression, as in OTEL_EXPORTER_OTLP_PROTOCOL and _COMPRESSION.
WAYS = (("grpc", ""), ("grpc", "gzip"), ("http/protobuf", "gzip"))
#: Verdicts in a message. The agent puts in what it judged in one turn, up to the last of these.
MESSAGES = (1, 8, 32)

_CALM_RATE = 20.0
_NEIGHBOUR_THREADS = 4


def run(quick: bool) -> Figures:
    if quick:
        return measure(calm_s=3.0, neighbour_s=3.0, overload=200, sent=200)
    return measure(calm_s=5.0, neighbour_s=8.0, overload=600, sent=1_000)


def measure(calm_s: float, neighbour_s: float, overload: int, sent: int) -> Figures:
    """``overload``: requests of that situation; ``sent``: verdicts each way of sending is measured with."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began_unix_ns, scrape = _record(folder, calm_s, neighbour_s, overload)
        stored = list(SegmentReader(folder / "store").evidence())
        judge_s = _cpu_s(lambda: [judge(evidence) for evidence in stored])
        by_situation = {
            NEIGHBOUR: [_judged(one) for one in stored if _start_unix_ns(one) < began_unix_ns],
            OVERLOAD: [_judged(one) for one in stored if _start_unix_ns(one) >= began_unix_ns],
        }
        if missing := [situation for situation, found in by_situation.items() if not found]:
            raise TailspanError(f"no slow request while {' and '.join(SITUATIONS[one] for one in missing)}")
        mixed = [one for found in by_situation.values() for turn in found for one in turn]
        return {
            "situations": {situation: _sizes(found) for situation, found in by_situation.items()},
            "judge_s": judge_s / len(mixed),
            "stages": _stages(mixed, sent),
            "ways": [
                {"protocol": protocol, "compression": compression}
                | verdicts_sent(folder, protocol, compression, mixed, sent)
                for protocol, compression in WAYS
            ],
            "forwarded": workers_spans_sent(folder, stored, sent),
            "scrape": scrape,
        }


def _record(folder: Path, calm_s: float, neighbour_s: float, overload: int) -> tuple[int, Figures]:
    """Leaves slow requests in ``folder``/store; gives when the overload began, and how large a scrape was then."""
    with serving.worker(folder) as url:
        serving.closed(folder, url, 100)  # the session warms up
        with serving.agent(folder) as agent:
            serving.load(folder, url, _CALM_RATE, calm_s)
            agent.wait_for_worker()
            neighbour = ("tailspan.worker.neighbour", "--threads", str(_NEIGHBOUR_THREADS), "--name", "backup")
            with running(*neighbour, "--seconds", str(neighbour_s), log=folder / "neighbour.log"):
                serving.load(folder, url, _CALM_RATE, neighbour_s)
            began_unix_ns = time.time_ns()
            serving.closed(folder, url, overload)
            return began_unix_ns, _scrape(agent.metrics_url)


def _scrape(url: str) -> Figures:
    text = _get(url, "text/plain")
    return {
        "series": sum(1 for line in text.decode().splitlines() if line and not line.startswith("#")),
        "text_bytes": len(text),
        "openmetrics_bytes": len(_get(url, "application/openmetrics-text; version=1.0.0")),
        "gzip_bytes": len(gzip.compress(text, 6)),
    }


def _get(url: str, accept: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept})) as response:
        body: bytes = response.read()
        return body


def _start_unix_ns(evidence: Evidence) -> int:
    return int(evidence.requests["start_mono_ns"].min()) + evidence.meta.unix_offset_ns


def _judged(evidence: Evidence) -> list[Judged]:
    """The requests of one turn of the agent, which share what is stored of them."""
    verdicts = judge(evidence)
    stored = len(encode_block(evidence, [IndexRow.of(verdict) for verdict in verdicts])) / len(verdicts)
    resources = evidence.meta.resources
    return [Judged(verdict, resources.get(str(verdict.request.pid), {}), stored) for verdict in verdicts]


def _sizes(turns: Sequence[Sequence[Judged]]) -> Figures:
    judged = [one for turn in turns for one in turn]
    spans = [one.spans() for one in judged]
    return {
        "requests": len(judged),
        "requests_per_turn": len(judged) / len(turns),
        "stored_bytes": statistics.fmean(one.stored_bytes for one in judged),
        "wall_ms": spread([one.verdict.request.wall_ns / 1e6 for one in judged]),
        "spans": _with_mean([len(verdict) for verdict in spans]),
        "events": _with_mean([sum(len(span.events) for span in verdict) for verdict in spans]),
        "bytes": _with_mean([len(encoded(verdict)) for verdict in spans]),
        "sent": [{"verdicts": size} | _messages(spans, size) for size in MESSAGES],
    }


def _messages(spans: Sequence[Sequence[ReadableSpan]], size: int) -> Figures:
    """Bytes a verdict where so many of them go in one message."""
    messages = [
        encoded([span for verdict in spans[at : at + size] for span in verdict])
        for at in range(0, len(spans), size)
    ]
    return {
        "bytes": sum(map(len, messages)) / len(spans),
        "gzip_bytes": sum(len(gzip.compress(message)) for message in messages) / len(spans),
    }


def _with_mean(values: Sequence[float]) -> Figures:
    return spread(values) | {"mean": statistics.fmean(values)}


def _stages(judged: Sequence[Judged], verdicts: int) -> Figures:
    """CPU seconds, stage by stage, in one thread."""
    chosen = list(islice(cycle(judged), verdicts))
    spans: list[ReadableSpan] = []
    made_s = _cpu_s(lambda: spans.extend(span for one in chosen for span in one.spans()))
    encoded_s = _cpu_s(lambda: [encoded(spans[at : at + SDK_BATCH]) for at in range(0, len(spans), SDK_BATCH)])
    return {"verdicts": verdicts, "spans": len(spans), "made_s": made_s, "encoded_s": encoded_s}


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def render(figures: Figures) -> str:
    parts = (_of_verdicts(figures), _of_sending(figures), sizing.of_a_host(figures), sizing.of_a_fleet(figures))
    return "\n\n".join((*parts, _WHAT_BOUNDS_IT))


def _of_verdicts(figures: Figures) -> str:
    kinds = figures["situations"]
    each = kinds.values()
    rows = [
        ["slow requests", *(f"{one['requests']:,}" for one in each)],
        ["their length, ms", *(span(one["wall_ms"]) for one in each)],
        ["spans a verdict", *(_mean(one["spans"]) for one in each)],
        ["span events a verdict", *(_mean(one["events"]) for one in each)],
        ["bytes a verdict", *(_mean(one["bytes"]) for one in each)],
        *(
            [f"the same, {size} a message, gzip", *(number(one["sent"][at]["gzip_bytes"]) for one in each)]
            for at, size in enumerate(MESSAGES)
        ),
        ["slow requests a turn of the agent", *(number(one["requests_per_turn"]) for one in each)],
        ["bytes of one in the host's own store", *(number(one["stored_bytes"]) for one in each)],
    ]
    return f"""## Export

The verdicts of real slow requests, as OTLP spans. The reference worker is slowed down twice: by a neighbour of
{_NEIGHBOUR_THREADS} threads on all its CPUs, and by more requests than it can serve. *mean (lowest to highest)*.

{table(["", *(SITUATIONS[kind] for kind in kinds)], rows)}

What is stored of the requests of one turn is stored once. A scrape of that agent has
{figures["scrape"]["series"]:,} series: {number(figures["scrape"]["text_bytes"])} bytes of text
({number(figures["scrape"]["gzip_bytes"])} with gzip), {number(figures["scrape"]["openmetrics_bytes"])} bytes of
OpenMetrics."""


def _mean(figure: Figures) -> str:
    return f"{number(figure['mean'])} ({number(figure['min'])} to {number(figure['max'])})"


def _of_sending(figures: Figures) -> str:
    stages, forwarded = figures["stages"], figures["forwarded"]
    rows = [
        ["a verdict becomes spans", *_cpu(stages["made_s"], stages), ""],
        ["spans become bytes", *_cpu(stages["encoded_s"], stages), ""],
    ]
    rows += [
        [
            f"both, spooled and sent: {way['protocol']}, {way['compression'] or 'not compressed'}",
            *_cpu(way["cpu_s"], way),
            number(way["spans"] / way["wall_s"]),
        ]
        for way in figures["ways"]
    ]
    rows.append(
        [
            f"a worker's own spans, {SDK_BATCH} a message, spooled and sent: grpc, gzip",
            "",
            number(forwarded["cpu_s"] / forwarded["spans"] * 1e6),
            number(forwarded["spans"] / forwarded["wall_s"]),
        ]
    )
    dropped = sum(way["dropped"] for way in figures["ways"])
    return f"""CPU time of the agent's process, all its threads, to a receiver on loopback that takes everything at
once. Verdicts dropped: {dropped}.

{table(["", "CPU a verdict, ms", "CPU a span, µs", "spans/s"], rows)}"""


def _cpu(cpu_s: float, counts: Figures) -> tuple[str, str]:
    return number(cpu_s / counts["verdicts"] * 1e3), number(cpu_s / counts["spans"] * 1e6)


_WHAT_BOUNDS_IT = f"""What bounds it: a span, or an event of one, is made and encoded by the OpenTelemetry SDK's
Python, object by object. A stretch below 1 ms or 2 % of its request has no span of its own, and only the
{MAX_EVENTS} longest of those are events, so that a verdict has at most 52 spans, however often its request was
interrupted. None of this is done by the thread that drains the kernel's rings, but all threads share one
interpreter."""
