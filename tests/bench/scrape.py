"""What a scrape costs, and for how long it keeps the agent's other thread from running.

The registry is filled to a number of series, two fifths of them buckets of histograms with exemplars, and every
value changes between two scrapes. Compared with prometheus_client's own metrics and text of the same size. A
thread that does nothing but look at the clock tells the longest time that it could not: with no scrape this is
what the scheduler takes from it, beyond that it is the interpreter, which only one thread can have.

Noise: 20 % in the times. The longest gaps are those of a machine with other work: with no scrape too, some are as
long as a scheduler's time slice.
"""

from __future__ import annotations

import http.client
import threading
import time
import zlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from tailspan.export import families, semconv
from tailspan.export.exposition import Exposition
from tailspan.export.otlp_metrics import encode
from tailspan.export.scrape import GZIP_LEVEL, MetricsServer
from tests.bench.page import number, span, table
from tests.bench.spread import Figures, spread

SIZES = (1000, 5000)
#: Of a histogram: its buckets, count and sum.
_LINES = len(semconv.DURATION_BUCKETS) + 3
_SLOW_S = (0.001, 0.1, 3.0)
_IDS = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"}
#: How long the thread that looks at the clock does so where nothing is scraped.
_IDLE_S = 0.05
_CAUSES = 38


def run(quick: bool) -> Figures:
    return measure(rounds=5 if quick else 41)


def measure(rounds: int) -> Figures:
    disable_created_metrics()
    return {"rounds": rounds, "sizes": {str(size): _size(size, rounds) for size in SIZES}}


def _size(series: int, rounds: int) -> Figures:
    registry, change = _ours(series)
    exposition = Exposition(registry)
    theirs, change_theirs = _theirs(series)
    text = exposition.render()
    return {
        "lines": sum(not line.startswith(b"#") for line in text.splitlines()),
        "bytes": len(text),
        "gzip_bytes": len(zlib.compress(text, GZIP_LEVEL)),
        "text_ms": _times(exposition.render, change, rounds),
        "openmetrics_ms": _times(lambda: exposition.render(openmetrics=True), change, rounds),
        "their_text_ms": _times(lambda: generate_latest(theirs), change_theirs, rounds),
        "their_openmetrics_ms": _times(lambda: generate_openmetrics(theirs), change_theirs, rounds),
        "http_ms": _over_http(registry, change, rounds),
        "otlp_ms": _times(lambda: encode(registry, {}, time.time_ns()), change, rounds),
        "gap_idle_ms": _gaps(lambda: time.sleep(_IDLE_S), change, rounds),
        "gap_ms": _gaps(lambda: exposition.render(openmetrics=True), change, rounds),
        "their_gap_ms": _gaps(lambda: generate_openmetrics(theirs), change_theirs, rounds),
        "otlp_gap_ms": _gaps(lambda: encode(registry, {}, time.time_ns()), change, rounds),
    }


def _routes(series: int) -> tuple[int, int]:
    """How many histograms and how many counters make so many series."""
    histograms = series * 2 // 5 // _LINES
    return histograms, series - histograms * _LINES


def _ours(series: int) -> tuple[families.Registry, Callable[[], None]]:
    registry = families.Registry()
    durations = families.Histogram(_unbounded(semconv.REQUEST_DURATION), _full)
    spent = families.Numbers(_unbounded(semconv.REQUEST_TIME), _full)
    registry.add(durations)
    registry.add(spent)
    histograms, counters = _routes(series)
    exemplar = tuple(_IDS.items())

    def change() -> None:
        for route in range(histograms):
            for value in _SLOW_S:
                labels = (f"route{route}", "resnet50", "1", "ok", "named", "run_queue")
                durations.observe(*labels, value=value, exemplar=exemplar)
        for place in range(counters):
            spent.inc(f"cause{place % _CAUSES}", f"route{place // _CAUSES}", by=1.37 * place + 0.001)

    change()
    return registry, change


def _theirs(series: int) -> tuple[CollectorRegistry, Callable[[], None]]:
    registry = CollectorRegistry()
    labels, buckets = semconv.REQUEST_DURATION.labels, semconv.DURATION_BUCKETS
    durations = Histogram(semconv.REQUEST_DURATION.name, "Durations", labels, registry=registry, buckets=buckets)
    spent = Counter(semconv.REQUEST_TIME.name, "Time", semconv.REQUEST_TIME.labels, registry=registry)
    histograms, counters = _routes(series)

    def change() -> None:
        for route in range(histograms):
            for value in _SLOW_S:
                named = durations.labels(f"route{route}", "resnet50", "1", "ok", "named", "run_queue")
                named.observe(value, _IDS)
        for place in range(counters):
            spent.labels(f"cause{place % _CAUSES}", f"route{place // _CAUSES}").inc(1.37 * place + 0.001)

    change()
    return registry, change


def _unbounded(metric: semconv.Metric) -> semconv.Metric:
    return semconv.Metric(
        metric.otel, metric.instrument, metric.unit, metric.attributes, metric.meaning, metric.source, limit=10_000
    )


def _full(metric: str) -> None:
    raise AssertionError(f"{metric} has no room left")


def _times(scrape: Callable[[], object], change: Callable[[], None], rounds: int) -> Figures:
    found = []
    for _ in range(rounds):
        change()
        began = time.perf_counter()
        scrape()
        found.append((time.perf_counter() - began) * 1e3)
    return spread(found)


def _over_http(registry: families.Registry, change: Callable[[], None], rounds: int) -> Figures:
    """A connection, a request and the whole answer, as Prometheus asks: OpenMetrics, gzip."""
    server = MetricsServer(registry, port=0)
    headers = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}

    def scrape() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/metrics", headers=headers)
        connection.getresponse().read()
        connection.close()

    try:
        scrape()
        return _times(scrape, change, rounds)
    finally:
        server.close()


def _gaps(scrape: Callable[[], object], change: Callable[[], None], rounds: int) -> Figures:
    """The longest time of each scrape in which another thread, that wants to run all the time, did not."""
    return spread([_gap(scrape, change) * 1e3 for _ in range(rounds)])


def _gap(scrape: Callable[[], object], change: Callable[[], None]) -> float:
    change()
    watching, over = threading.Event(), threading.Event()
    longest = 0.0

    def watch() -> None:
        nonlocal longest
        watching.set()
        last = time.perf_counter()
        while not over.is_set():
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    watching.wait()
    scrape()
    over.set()
    watcher.join()
    return longest


_ROWS: dict[str, Callable[[Figures], str]] = {
    "**text, ms**": lambda size: f"**{span(size['text_ms'])}**",
    "text by prometheus_client, ms": lambda size: span(size["their_text_ms"]),
    "**OpenMetrics with exemplars, ms**": lambda size: f"**{span(size['openmetrics_ms'])}**",
    "OpenMetrics by prometheus_client, ms": lambda size: span(size["their_openmetrics_ms"]),
    "whole scrape over HTTP, OpenMetrics, gzip, ms": lambda size: span(size["http_ms"]),
    "a push of metrics by OTLP, encoding, ms": lambda size: span(size["otlp_ms"]),
    "another thread's longest gap, no scrape, ms": lambda size: span(size["gap_idle_ms"]),
    "**with a scrape, ms**": lambda size: f"**{span(size['gap_ms'])}**",
    "with one by prometheus_client, ms": lambda size: span(size["their_gap_ms"]),
    "with a push by OTLP, ms": lambda size: span(size["otlp_gap_ms"]),
    "bytes of text": lambda size: number(size["bytes"]),
    "bytes of it in gzip": lambda size: number(size["gzip_bytes"]),
}


def render(figures: Figures) -> str:
    sizes = figures["sizes"]
    rows = [[label, *(cell(size) for size in sizes.values())] for label, cell in _ROWS.items()]
    header = ["", *(f"{size['lines']:,} series" for size in sizes.values())]
    return f"""## A scrape

{figures["rounds"]} scrapes of each kind in this process, every value changed in between.

{table(header, rows)}

What bounds it: writing numbers as text. Everything else of a line is kept from the scrape before, so the first one
takes several times as long. A gap ends when the interpreter is handed over: after 5 ms at the latest, or when the
scrape is done. The agent's own thread lets go of it many times a tick, and may wait each time that long while
a scrape lasts. Until then records wait in their rings."""
