"""What the agent costs an inference worker: its throughput and latency with the agent running, against it absent.

One reference worker serves all the time; an agent is started for two stretches of three, and ended after each.
Absent means no agent process, nothing attached, no socket (the worker's client looks for one once a second).
*Core* is an agent without the probes that :mod:`tests.bench.probes` calls refining, so that their part shows. In
each stretch the same requests are made:

* the jump: a second and a half of little load, from which an agent learns what is normal, then saturation at once.
  Everything is slow now, until that has become the norm: the agent's busiest moment, and warm-up for the rest
* closed loop: a fixed number of requests by as many connections as keep the worker saturated; gives the throughput
* open loop: at a fixed rate, three fifths of that throughput, latencies counted from the intended time of each
  request; gives p50, p99 and p99.9

Worker, load generator and agent share the machine's CPUs, so what the agent takes is taken from the other two.

Noise: on two virtual CPUs the throughput of identical stretches differs by 3 %, p50 by 5 %, and p99 by 20 % or
more, for a p99 is decided by a handful of requests. Only a ratio whose interval leaves out 1 says anything.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import serving
from tests.bench.page import interval, number, span, table
from tests.bench.probes import REFINING
from tests.bench.spread import Figures, ratio, spread, turns

OPEN_SHARE = 0.6  #: of the saturated throughput
ABSENT, CORE, RUNNING = "absent", "core", "running"
MEASURES = {
    "throughput_per_s": "throughput, requests/s",
    "jump_per_s": "throughput just after the jump, requests/s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "p999_ms": "p99.9, ms",
}
#: What is divided by what.
RATIOS = {"core": (CORE, ABSENT), "running": (RUNNING, ABSENT), "refining": (RUNNING, CORE)}

_REST_S = 0.6  #: two judgements and a bit
_CALIBRATION = 600  #: requests
_HELLO_RATE, _HELLO_S = 20.0, 1.5
#: Requests of the jump: more than the agent needs to take it for the norm.
_JUMP = 800


def run(quick: bool) -> Figures:
    # A stretch must be shorter than the agent's window (30 s): records are counted by what that holds.
    return measure(rounds=2, seconds=2.0) if quick else measure(rounds=8, seconds=6.0)


def measure(rounds: int, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving.worker(folder) as url:
            serving.closed(folder, url, _CALIBRATION)  # the session warms up
            capacity = serving.closed(folder, url, _CALIBRATION)["throughput_per_s"]
            requests, rate = round(capacity * seconds), round(capacity * OPEN_SHARE)
            stretches: dict[str, list[Figures]] = {ABSENT: [], CORE: [], RUNNING: []}
            for kinds in turns(tuple(stretches), rounds):
                for kind in kinds:
                    with _agent(folder, kind) as agent:
                        stretches[kind].append(_stretch(folder, url, agent, requests, rate, seconds))
    found = {
        measure: {kind: [one[measure] for one in stretches[kind]] for kind in stretches} for measure in MEASURES
    }
    return {
        "rounds": rounds,
        "seconds_per_loop": seconds,
        "connections": serving.CONNECTIONS,
        "cpus": len(os.sched_getaffinity(0)),
        "open_rate_per_s": rate,
        "closed_requests": requests,
        "probes": {kind: stretches[kind][0]["probes"] for kind in (CORE, RUNNING)},
        "errors": sum(one["errors"] for kind in stretches for one in stretches[kind]),
        "raw": {
            measure: {kind: spread(values) for kind, values in by_kind.items()}
            for measure, by_kind in found.items()
        },
        "ratio": {
            name: {measure: ratio(by_kind[kind], by_kind[base]) for measure, by_kind in found.items()}
            for name, (kind, base) in RATIOS.items()
        },
        "agent": {
            phase: _summary([one["agent"][phase] for one in stretches[RUNNING]]) for phase in ("steady", "jump")
        },
    }


@contextlib.contextmanager
def _agent(folder: Path, kind: str) -> Iterator[serving.Agent | None]:
    if kind == ABSENT:
        yield None
        return
    with serving.agent(folder, REFINING if kind == CORE else ()) as agent:
        yield agent


def _summary(readings: list[Figures]) -> Figures:
    lost: dict[str, int] = {}
    for reading in readings:
        for name, count in reading["lost"].items():
            lost[name] = lost.get(name, 0) + count
    return {
        "cpu_percent": spread([100 * reading["cpu_s"] / reading["seconds"] for reading in readings]),
        "cpu_us_per_request": spread([1e6 * reading["cpu_s"] / reading["requests"] for reading in readings]),
        "records_per_s": spread([reading["records"] / reading["seconds"] for reading in readings]),
        "records_per_request": spread([reading["records"] / reading["requests"] for reading in readings]),
        "rss_mib": spread([reading["rss_mib"] for reading in readings]),
        "peak_rss_mib": spread([reading["peak_rss_mib"] for reading in readings]),
        "requests": sum(reading["requests"] for reading in readings),
        "requests_judged": sum(reading["requests_judged"] for reading in readings),
        "slow": sum(reading["slow"] for reading in readings),
        "lost": lost,
        "verdicts_within": {
            bound: sum(reading["verdicts_within"].get(bound, 0) for reading in readings)
            for bound in readings[0]["verdicts_within"]
        },
    }


def _stretch(
    folder: Path, url: str, agent: serving.Agent | None, requests: int, rate: float, seconds: float
) -> Figures:
    """All loops, the agent's counters around them."""
    serving.load(folder, url, _HELLO_RATE, _HELLO_S)  # also time enough for the worker's client to find the agent
    if agent:
        agent.wait_for_worker()
    readings = [_reading(agent)]
    jump = serving.closed(folder, url, _JUMP)
    readings.append(_reading(agent))
    closed, opened = serving.closed(folder, url, requests), serving.load(folder, url, rate, seconds)
    readings.append(_reading(agent))
    found: Figures = {
        "throughput_per_s": closed["throughput_per_s"],
        "jump_per_s": jump["throughput_per_s"],
        "p50_ms": opened["p50_ms"],
        "p99_ms": opened["p99_ms"],
        "p999_ms": opened["p999_ms"],
        "errors": jump["errors"] + closed["errors"] + opened["errors"],
    }
    if agent:
        found["probes"] = readings[0]["probes"]
        found["agent"] = {
            "jump": _between(readings[0], readings[1], [jump]),
            "steady": _between(readings[1], readings[2], [closed, opened]),
        }
    return found


def _reading(agent: serving.Agent | None) -> Figures:
    """With the agent absent the worker gets the same moment of rest, in which an agent judges what has ended."""
    time.sleep(_REST_S)
    return agent.reading() if agent else {}


def _between(before: Figures, after: Figures, loads: list[Figures]) -> Figures:
    return {
        "seconds": after["mono_s"] - before["mono_s"],
        "requests": sum(load["count"] for load in loads),
        "rss_mib": after["rss_mib"],
        "peak_rss_mib": after["peak_rss_mib"],
        "lost": {name: count - before["lost"].get(name, 0) for name, count in after["lost"].items()},
        "verdicts_within": {
            bound: count - before["verdicts_within"].get(bound, 0)
            for bound, count in after["verdicts_within"].items()
        },
        **{key: after[key] - before[key] for key in ("cpu_s", "records", "requests_judged", "slow")},
    }


def render(figures: Figures) -> str:
    rows = [
        [
            words,
            *(span(figures["raw"][measure][kind]) for kind in (ABSENT, CORE, RUNNING)),
        ]
        for measure, words in MEASURES.items()
    ]
    ratios = [
        [words, *(interval(figures["ratio"][name][measure]) for name in RATIOS)]
        for measure, words in MEASURES.items()
    ]
    steady, jump = figures["agent"]["steady"], figures["agent"]["jump"]
    itself = [[words, cell(steady), cell(jump)] for words, cell in _AGENT_ROWS.items()]
    return f"""## The worker

The reference worker (`python -m tailspan.worker`) with its default model on all CPUs, beside its load
generator. {figures["rounds"]} stretches with the agent absent, as many with *core* running (an agent with the
probes {", ".join(figures["probes"][CORE])} alone) and as many with the agent as it is by default, in turn. Closed
loop, for the throughput: {figures["closed_requests"]:,} requests by {figures["connections"]} connections. Open
loop, for the latencies: {figures["open_rate_per_s"]:,} requests/s for {number(figures["seconds_per_loop"])} s.
Requests that failed: {figures["errors"]:,}.

{table(["", "agent absent", "core running", "agent running"], rows)}

{table(["ratio of", "core to absent", "agent to absent", "agent to core"], ratios)}

The last column is the part of the probes {", ".join(_refining(figures))}.

The agent itself meanwhile, with the default configuration. *Steady* is both loops. *The jump* comes before them: a
young agent has seen {_HELLO_S} s of {_HELLO_RATE:.0f} requests/s, then the worker is saturated at once, and every
request is slow until that has become the norm.

{table(["", "steady", "the jump"], itself)}

What bounds it: on the worker's side, one message a request and one a batch (see *The client*) and its threads'
context switches; on the agent's, the ledger of every request, and a verdict for each slow one (see *Attribution*).
All three processes share the machine's CPUs, so the agent's CPU time is missing elsewhere."""


def _refining(figures: Figures) -> list[str]:
    return sorted(set(figures["probes"][RUNNING]) - set(figures["probes"][CORE]))


_AGENT_ROWS: dict[str, Callable[[Figures], str]] = {
    "CPU, % of one core": lambda agent: span(agent["cpu_percent"]),
    "CPU a request, µs": lambda agent: span(agent["cpu_us_per_request"]),
    "records/s": lambda agent: span(agent["records_per_s"]),
    "records a request": lambda agent: span(agent["records_per_request"]),
    "resident, MiB": lambda agent: span(agent["rss_mib"]),
    "peak resident since its start, MiB": lambda agent: span(agent["peak_rss_mib"]),
    "requests made": lambda agent: f"{agent['requests']:,}",
    "requests it was told of": lambda agent: f"{agent['requests_judged']:,.0f}",
    "of them judged slow, with a verdict": lambda agent: f"{agent['slow']:,.0f}",
    "**lost: records, messages, rows**": lambda agent: f"**{_lost(agent)}**",
}


def _lost(agent: Figures) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(agent["lost"].items()) if count) or "0"
