"""What it costs to say why: a second with 10,000 requests and 100,000 turns of threads, attributed at once.

Compared with nothing: the figures are seconds of one core. Accounts and ledgers are made of every request;
verdicts, with culprits, waterfall and sentence, only of slow ones, here one in a hundred. The same with a
hundredth and a tenth of the second shows how the cost grows: were it quadratic, ten times the requests would
take a hundred times as long.

The evidence is synthetic (``second.py``) and always the same. Noise: 5 to 10 % between repetitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import judge
from tailspan.attribute.ledger import account, ledgers
from tailspan.pipeline import LEDGER_BUDGET_S, VERDICT_BUDGET_S
from tailspan.timeline.cut import narrow
from tailspan.timeline.evidence import Evidence
from tests.bench.page import number, span, table
from tests.bench.second import evidence
from tests.bench.spread import Figures, spread

SIZES = (100, 1_000, 10_000)
#: One request in so many is slow.
SLOW = 100


def run(quick: bool) -> Figures:
    return measure(SIZES, repeat=2) if quick else measure(SIZES, repeat=7)


def measure(sizes: tuple[int, ...], repeat: int) -> Figures:
    return {"sizes": [_measure(evidence(size), repeat) for size in sizes]}


def _measure(whole: Evidence, repeat: int) -> Figures:
    requests = len(whole.requests)
    slow = narrow(whole, np.arange(0, requests, SLOW))
    table = ledgers(account(whole), requests)
    walls = whole.requests["end_mono_ns"] - whole.requests["start_mono_ns"]
    assert (table.sum(axis=1) == walls).all()
    return {
        "requests": requests,
        "cycles": len(whole.cycles),
        "slices": len(whole.slices),
        "stretches": len(account(whole).rows),
        "unknown_percent": 100 * float(table[:, Cause.UNKNOWN].sum() / walls.sum()),
        "ledger_s": spread(_times(lambda: ledgers(account(whole), requests), repeat)),
        "slow": len(slow.requests),
        "judge_s": spread(_times(lambda: judge(slow), repeat)),
    }


def _times(work: Callable[[], object], repeat: int) -> list[float]:
    """CPU seconds: what else the machine does meanwhile is not counted."""
    found = []
    for _ in range(repeat):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return found


def render(figures: Figures) -> str:
    rows = [
        [
            f"{one['requests']:,}",
            f"{one['cycles']:,}",
            f"{one['stretches']:,}",
            _scaled(one["ledger_s"], 1e3),
            number(one["ledger_s"]["median"] / one["requests"] * 1e6),
            f"{one['slow']:,}",
            number(one["judge_s"]["median"] / one["slow"] * 1e3),
        ]
        for one in figures["sizes"]
    ]
    header = ["requests", "turns", "stretches", "all ledgers, ms", "a request, µs", "slow", "a verdict, ms"]
    whole = figures["sizes"][-1]
    return f"""## Attribution

One synthetic second: 40 handlers and 10 executors serve 10,000 requests in batches of eight, and go off the CPU
100,000 times. The ledgers of all requests are made in one go; one in {SLOW} is slow and gets a verdict. CPU
time of one core.

{table(header, rows)}

Attributing a second of this takes {number(whole["ledger_s"]["median"])} s and its {whole["slow"]} verdicts
{number(whole["judge_s"]["median"])} s.

What bounds it: ledgers are arrays, sorted and tiled by numpy, and grow with the number of stretches (a piece of
one request with one cause). A verdict begins with the ledgers of all slow requests and is then Python, stretch by
stretch. In each turn (`agent.judge_ms`) the daemon spends about {LEDGER_BUDGET_S * 1e3:.0f} ms on ledgers, of a
sample where that is not enough for all, and {VERDICT_BUDGET_S * 1e3:.0f} ms on verdicts; requests beyond that are
stored and judged when they are explained."""


def _scaled(figure: Figures, factor: float) -> str:
    return span({key: value if key == "n" else value * factor for key, value in figure.items()})
