"""What the agent costs, as its control socket answers it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tailspan.views.table import GAP, MIN_WIDTH, grid, pieces, plain, utc, wrap

Json = dict[str, Any]

#: What is compared -> what it is called.
COMPARED = {"p50": "p50", "p99": "p99", "mean": "mean", "cpu": "cpu time"}
#: BPF programs that are listed; the rest is summed up.
MAX_PROGRAMS = 12
_MIB = 1 << 20


def as_text(answer: Json, width: int = 80) -> str:
    """Raises KeyError, TypeError, ValueError or AttributeError where the answer is no agent's of this version."""
    width = max(width, MIN_WIDTH)
    blocks = [
        [*_agent(answer["agent"], width), *_budget(answer, width)],
        _records(answer, width),
        _programs(answer["bpf"], width) if answer["bpf"] else [],
        [*_last(answer, width)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def measured_as_text(measured: Json, width: int = 80) -> str:
    """One measurement. Raises as :func:`as_text`."""
    width = max(width, MIN_WIDTH)
    requests = measured["requests"]
    about = (
        f"probes on and off in {measured['turns']} turns, {measured['pairs']} pairs, {measured['seconds']:.0f} s:"
        f" {requests['on']} requests with them, {requests['off']} without"
    )
    rows: list[tuple[str, ...]] = [("request", "on", "off", "difference", "95 % interval", "ratio")]
    rows += [_compared(COMPARED[name], found) for name, found in measured["differences"].items()]
    lines = [*wrap(about, width), *grid(rows, width, right=(1, 2, 3, 4, 5), elastic=0)]
    alike = [COMPARED[name] for name, found in measured["differences"].items() if not found["told_apart"]]
    if alike:
        lines += wrap(f"{', '.join(alike)}: could not be told apart, the interval contains 0", width)
    if "p99" not in measured["differences"]:
        lines += wrap("p99: too few requests to tell", width)
    if "cpu" not in measured["differences"]:
        lines += wrap("cpu time: a turn had no request to share it", width)
    return "\n".join(lines)


def _agent(agent: Json, width: int) -> list[str]:
    cpu = agent["cpu"]
    parts = [
        f"cpu {_share(cpu['10s'])} over 10 s",
        f"{_share(cpu['60s'])} over 60 s",
        f"{_share(cpu['start'])} since its start {_ago(agent['up_s'])} ago (of one CPU)",
    ]
    memory = [
        f"memory {agent['rss'] / _MIB:.1f} MiB",
        f"at most {agent['peak_rss'] / _MIB:.1f} MiB",
        f"{agent['threads']} threads",
        f"{agent['files']} open files",
    ]
    return [*pieces(parts, width), *pieces(memory, width)]


def _budget(answer: Json, width: int) -> Iterator[str]:
    budget, shed = answer["budget"], answer["shed"]
    cpu = f"{_share(budget['cpu'])} of one CPU" if budget["cpu"] else "any CPU time"
    rss = f"{budget['rss_mib']} MiB" if budget["rss_mib"] else "any memory"
    yield from wrap(f"budget {cpu}, {rss}: {'shed' if shed else 'nothing is shed'}", width)
    for step in shed:
        lack = f"; {step['unsaid']}" if step["unsaid"] else ""
        yield from wrap(f"{step['what']} (above the {step['why']} budget){lack}", width, GAP, GAP)


def _records(answer: Json, width: int) -> list[str]:
    lost: Mapping[str, int] = answer["lost"]["total"]
    lately: Mapping[str, int] = answer["lost"]["60s"]
    came: Mapping[str, float] = answer["records_per_s"]
    names = [name for name in sorted({*came, *lost}) if came.get(name) or lost.get(name)]
    if not names:
        return ["no records of the kernel in the last 10 s, and none lost"]
    rows = [("records", "a second", "lost in 60 s", "lost in all")]
    rows += [
        (plain(name), f"{came.get(name, 0.0):.1f}", str(lately.get(name, 0)), str(lost.get(name, 0)))
        for name in names
    ]
    return grid(rows, width, right=(1, 2, 3), elastic=0)


def _programs(bpf: Json, width: int) -> list[str]:
    programs = bpf["programs"]
    rows = [(f"BPF program, over {bpf['seconds']:.1f} s", "ns a run", "runs/s", "of one CPU")]
    rows += [
        (plain(row["program"]), f"{row['ns_per_run']:.0f}", f"{row['runs_per_s']:.1f}", _share(row["cpu"]))
        for row in programs[:MAX_PROGRAMS]
    ]
    if more := programs[MAX_PROGRAMS:]:
        rows.append((f"{len(more)} more", "", "", _share(sum(row["cpu"] for row in more))))
    rows.append(("all", "", "", _share(sum(row["cpu"] for row in programs))))
    return grid(rows, width, right=(1, 2, 3), elastic=0)


def _last(answer: Json, width: int) -> Iterator[str]:
    if answer["measuring"]:
        yield "what probes cost the worker is being measured now"
    if answer["measured"]:
        at = utc(round(answer["measured"]["measured_unix_s"] * 1e9))
        yield from wrap(f"what probes cost the worker, measured {at[:-4]} UTC:", width)
        yield measured_as_text(answer["measured"], width)
    elif not answer["measuring"]:
        yield from wrap("what probes cost the worker has not been measured: tailspan cost --measure 60s", width)


def _compared(name: str, found: Json) -> tuple[str, ...]:
    estimate, lower, upper = (f"{_fine(found[key]):+}" for key in ("estimate_s", "lower_s", "upper_s"))
    ratios = [found[key] for key in ("ratio", "ratio_lower", "ratio_upper")]
    ratio = "{:.3f} ({:.3f}-{:.3f})".format(*ratios) if all(map(math.isfinite, ratios)) else "-"
    on, off = (f"{1e3 * found[key]:.2f} ms" for key in ("on_s", "off_s"))
    return (name, on, off, f"{estimate} µs", f"{lower} to {upper} µs", ratio)


def _fine(seconds: float) -> int | float:
    """Microseconds, whole ones where there are some."""
    us = seconds * 1e6
    return round(us) if abs(us) >= 9.95 else round(us, 1)


def _share(cpu: float) -> str:
    return f"{100 * cpu:.2f} %"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
