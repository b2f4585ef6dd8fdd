"""What one host and a fleet send in a day, from the figures of :mod:`tests.bench.export`.

``python -m tests.bench.sizing docs/fleet`` writes the tables of ``sizing.json`` there into the README beside it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tailspan.config import Config
from tailspan.pipeline import MIN_VERDICTS, VERDICT_BUDGET_S
from tests.bench.page import number, table, wrapped
from tests.bench.spread import Figures

RATES = (10, 100, 1_000)  #: requests/s of a host
SLOW_SHARES = (0.01, 0.05)
HOSTS = 500
SCRAPE_EVERY_S = 15

_DAY_S = 86_400
_TURNS_PER_S = 1_000 / Config().agent.judge_ms


@dataclass(frozen=True, slots=True)
class Sizing:
    """One host: what leaves it (compressed), what stays in its store, and what a spool has to hold (as it is)."""

    requests_per_s: int
    slow_share: float
    verdicts_per_s: float
    spans_per_s: float
    sent_bytes_per_s: float
    stored_bytes_per_s: float
    spooled_bytes_per_s: float
    own_spans_per_s: float  #: the worker's own spans, if it sends all of them through the agent
    forwarded_bytes_per_s: float
    own_spooled_bytes_per_s: float

    def words(self) -> str:
        return f"{self.requests_per_s:,} requests/s, {100 * self.slow_share:.0f} % slow"


def sizings(figures: Figures) -> list[Sizing]:
    """Every rate with every share of slow requests."""
    return [_sizing(figures, rate, share) for rate in RATES for share in SLOW_SHARES]


def _sizing(figures: Figures, rate: int, share: float) -> Sizing:
    situations, forwarded = figures["situations"].values(), figures["forwarded"]
    verdicts_per_s = min(rate * share, most_verdicts_per_s(figures))
    together = verdicts_per_s / _TURNS_PER_S
    sent_bytes = max(_per_verdict(one["sent"], together) for one in situations)
    own_spans_per_s = rate * forwarded["spans_per_request"]
    return Sizing(
        requests_per_s=rate,
        slow_share=share,
        verdicts_per_s=verdicts_per_s,
        spans_per_s=verdicts_per_s * max(one["spans"]["mean"] for one in situations),
        sent_bytes_per_s=verdicts_per_s * sent_bytes,
        stored_bytes_per_s=rate * share * max(one["stored_bytes"] for one in situations),
        spooled_bytes_per_s=verdicts_per_s * max(one["bytes"]["mean"] for one in situations),
        own_spans_per_s=own_spans_per_s,
        forwarded_bytes_per_s=own_spans_per_s * forwarded["gzip_bytes_per_span"],
        own_spooled_bytes_per_s=own_spans_per_s * forwarded["bytes_per_span"],
    )


def _per_verdict(sent: Sequence[Figures], together: float) -> float:
    """Compressed bytes of one of so many that go in one message: fewer are less alike, and compress worse."""
    fitting = [one["gzip_bytes"] for one in sent if one["verdicts"] <= max(together, 1)]
    return float(fitting[-1])


def most_verdicts_per_s(figures: Figures) -> float:
    """What an agent allows itself: evidence of more requests is stored, and judged when it is asked for."""
    return _TURNS_PER_S * max(MIN_VERDICTS, VERDICT_BUDGET_S / float(figures["judge_s"]))


def of_a_host(figures: Figures) -> str:
    forwarded = figures["forwarded"]
    rows = [
        [
            one.words(),
            count(one.verdicts_per_s * _DAY_S),
            count(one.spans_per_s * _DAY_S),
            size(one.sent_bytes_per_s * _DAY_S),
            size(one.stored_bytes_per_s * _DAY_S),
            _hours(one.spooled_bytes_per_s),
            size(one.forwarded_bytes_per_s * _DAY_S),
            _hours(one.spooled_bytes_per_s + one.own_spooled_bytes_per_s),
        ]
        for one in sizings(figures)
    ]
    header = ["one host, one day", "verdicts", "spans", "sent", "stored", "spool, h", "forwarded", "spool, h"]
    return f"""What that makes of a host in a day, with the larger of the two situations' figures. *Sent* is with
gzip. *Stored* is what the host's own store takes in; it keeps `store.total_mib` of it. *Forwarded* are the
worker's own spans, if it sends every one through the agent: {number(forwarded["spans_per_request"])} a request,
{number(forwarded["gzip_bytes_per_span"])} bytes each with gzip, {number(forwarded["bytes_per_span"])} without.
*Spool* is for how many hours {Config().export.spool_mib} MiB (`export.spool_mib`) hold what cannot be sent: the
verdicts, and then verdicts and forwarded spans together.

{table(header, rows)}

An agent makes at most {number(most_verdicts_per_s(figures))} verdicts a second here: one takes
{number(figures["judge_s"] * 1e3)} ms, and it spends {VERDICT_BUDGET_S * 1e3:.0f} ms of each turn of
{Config().agent.judge_ms} ms on them. Evidence of what is slow beyond that is stored, and nothing is sent of it."""


def _hours(bytes_per_s: float) -> str:
    return number((Config().export.spool_mib << 20) / bytes_per_s / 3600)


def of_a_fleet(figures: Figures) -> str:
    rows = [
        [
            one.words(),
            number(HOSTS * one.spans_per_s),
            number(HOSTS * one.sent_bytes_per_s * 8e-6),
            size(HOSTS * one.sent_bytes_per_s * _DAY_S),
            number(HOSTS * one.own_spans_per_s),
            number(HOSTS * one.forwarded_bytes_per_s * 8e-6),
        ]
        for one in sizings(figures)
    ]
    header = [f"{HOSTS} such hosts", "spans/s", "Mbit/s", "a day", "own spans/s", "Mbit/s of them"]
    series = HOSTS * figures["scrape"]["series"]
    return f"""{table(header, rows)}

Their agents have {number(series)} series; scraped every {SCRAPE_EVERY_S} s that is
{number(series / SCRAPE_EVERY_S)} samples a second."""


def written(readme: str, results: Figures) -> str:
    """The README with the tables of ``results`` (as ``--json`` wrote them) between its two marks."""
    machine, figures = results["machine"], results["benches"]["export"]
    where = (
        f"On {machine['cpus']} CPUs of an {machine['cpu']}, Linux {machine['kernel']}, Python {machine['python']}."
    )
    section = wrapped("\n\n".join((f"{of_a_host(figures)} {where}", of_a_fleet(figures))))
    return re.sub(r"(?s)(?<=<!-- sizing -->\n).*(?=<!-- /sizing -->)", lambda _: f"{section}\n", readme)


def count(value: float) -> str:
    """``864``, ``8.64 k``, ``86.4 M``."""
    return _scaled(value, (" k", " M", " G"))


def size(value: float) -> str:
    """``86.4 MB``: powers of 1,000."""
    return _scaled(value, (" kB", " MB", " GB", " TB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    unit = ""
    for larger in units:
        if value < 1_000:
            break
        value, unit = value / 1_000, larger
    return f"{number(value)}{unit}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    readme = folder / "README.md"
    readme.write_text(written(readme.read_text(), json.loads((folder / "sizing.json").read_text())))
