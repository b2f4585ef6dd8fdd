"""What came of it: text for a terminal, and the page with its picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from tests.bench.page import number, table, wrapped
from tests.chaos.run import LONGEST_MS, RSS_BOUND_MIB, Figures
from tests.chaos.soak import SAMPLE_S

PICTURE = "endurance.svg"  #: beside the page

_STRETCH_S = 300
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 220, 46, 28, 12
_INK, _LINE, _FAINT = "#57606a", "#0969da", "#d0d7de"


def wrong(found: Figures) -> list[str]:
    """All that did not hold, in the order in which it came; and faults of which nothing was to be seen."""
    held = [f"{done['fault']}: {why}" for done in found["rounds"] for why in done["wrong"]]
    did = Counter(dict.fromkeys(found["what"], 0))
    for done in found["rounds"]:
        did[done["fault"]] += sum(done["did"].values())
    tried = {done["fault"] for done in found["rounds"]}
    return held + [
        f"{name}: nothing of it was to be seen" for name, count in did.items() if not count and name in tried
    ]


def text(found: Figures) -> str:
    held = wrong(found)
    verdict = "\n".join(["What did not hold:", *held]) if held else "All of it held."
    return "\n\n".join(part for part in (_faults(found), _soak(found), verdict) if part)


def page(found: Figures) -> str:
    parts = [_HOW, _machine(found), "## Faults", _FAULTS, _faults(found), "## What was lost, and counted", _LOST]
    parts.append(_lost(found))
    if _soak(found):
        parts += ["## The soak", _how_long(found), _soak(found), f"![Resident memory over the soak]({PICTURE})"]
    held = wrong(found)
    parts += ["## What did not hold", "\n".join(f"* {line}" for line in held) if held else "Nothing."]
    return wrapped("\n\n".join(parts)) + "\n"


def picture(found: Figures) -> str:
    """Resident memory over the soak, as SVG."""
    samples: list[list[float]] = found["soak"]["samples"]
    span_s, top = samples[-1][0], 20 * (int(max(row[1] for row in samples)) // 20 + 1)

    def x(at_s: float) -> float:
        return _LEFT + at_s / span_s * (_WIDTH - _LEFT - 10)

    def y(mib: float) -> float:
        return _HEIGHT - _BOTTOM - mib / top * (_HEIGHT - _BOTTOM - _TOP)

    def word(at_x: float, at_y: float, what: str, anchor: str) -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{what}</text>'

    lines = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y(mib):.1f}" y2="{y(mib):.1f}" stroke="{_FAINT}"/>'
        for mib in range(0, top + 1, top // 4)
    ]
    scale = [word(_LEFT - 6, y(mib) + 4, f"{mib}", "end") for mib in range(0, top + 1, top // 4)]
    step_s = 600 if span_s >= 1800 else 60
    minutes = [
        word(x(at_s), _HEIGHT - 10, f"{at_s // 60}", "middle") for at_s in range(0, int(span_s) + 1, step_s)
    ]
    points = " ".join(f"{x(row[0]):.1f},{y(row[1]):.1f}" for row in samples)
    begin = x(found["soak"]["begin_s"])
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
            f'font-family="sans-serif" font-size="11" fill="{_INK}">',
            "<title>Resident memory of the agent, MiB, over minutes</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *lines,
            *scale,
            *minutes,
            f'<line x1="{begin:.1f}" x2="{begin:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="{_INK}" '
            'stroke-dasharray="3 3"/>',
            word(begin + 4, _TOP + 10, "from here on it is measured", "start"),
            f'<polyline points="{points}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>',
            "</svg>\n",
        ]
    )


def _machine(found: Figures) -> str:
    about = found["machine"]
    virtual = ", a virtual machine" if about["virtual"] else ""
    return (
        f"The machine: {about['cpus']} CPUs of an {about['cpu']}, {about['memory_gib']} GiB{virtual}; Linux "
        f"{about['kernel']}, Python {about['python']}. The load: {number(found['rate_per_s'])} requests/s, open "
        f"loop. The agent ran as {found['user']}. Load average when the run began: {about['load_before']}."
    )


def _faults(found: Figures) -> str:
    header = (
        *("fault", "times", "in all", "the agent", "asked", "judged", "dropped by the client", "died unread"),
        *("uncounted", "failed", "p99 before, ms", "p99 during, ms", "slowest request, ms", "slowest call, ms"),
        "peak resident, MiB",
    )
    rows = []
    for name, what in found["what"].items():
        if of_fault := [done for done in found["rounds"] if done["fault"] == name]:
            rows.append([f"`{name}`: {what}", *_row(of_fault)])
    return table(header, rows)


def _row(rounds: Sequence[Figures]) -> list[str]:
    outcomes = Counter(done["outcome"] for done in rounds)
    sums = ("asked", "judged", "dropped_by_client", "died_unread", "uncounted", "failed")
    stretches = [
        [done[when] for done in rounds if done[when].get("count")] for when in ("before", "during", "after")
    ]
    p99 = [number(median(part["p99_ms"] for part in parts)) if parts else "" for parts in stretches[:2]]
    slowest = max((part["max_ms"] for parts in stretches for part in parts), default=0.0)
    did: Counter[str] = Counter()
    for done in rounds:
        did.update(done["did"])
    return [
        f"{len(rounds)}",
        ", ".join(f"{count:,} {_words(name)}" for name, count in did.items()),
        ", ".join(f"{outcome} {times}" if len(outcomes) > 1 else outcome for outcome, times in outcomes.items()),
        *(f"{sum(done[key] for done in rounds):,}" for key in sums),
        *p99,
        number(slowest),
        number(max(done["longest_call_ms"] for done in rounds)),
        number(max(done["reading"]["peak_rss_mib"] for done in rounds)),
    ]


def _words(name: str) -> str:
    """Series are code, and other things words."""
    return f"`{name}`" if name.startswith("tailspan_") else name


def _lost(found: Figures) -> str:
    lost: Counter[str] = Counter()
    where: dict[str, set[str]] = {}
    for done in found["rounds"]:
        for name, count in done["lost"].items():
            lost[name] += count
            where.setdefault(name, set()).add(done["fault"])
    rows = [[f"`{name}`", f"{count:,}", ", ".join(sorted(where[name]))] for name, count in lost.most_common()]
    return table(("class or reason", "counted", "while"), rows)


def _how_long(found: Figures) -> str:
    soak = found["soak"]
    return (
        f"One agent's life of {soak['end_s'] / 60:.0f} minutes under the faults that it does not end of, in turn, "
        f"always in the same order (seed {found['seed']}). *First* and *last* are medians of the "
        f"{soak['span_s']:.0f} s after minute {soak['begin_s'] / 60:.0f}, and of as long before the end; *least* "
        "and *most* are of all in between."
    )


def _soak(found: Figures) -> str:
    soak = found.get("soak", {})
    if "growth" not in soak:
        return ""
    names = {"rss_mib": ("resident, MiB", 1), "fds": ("descriptors", 0), "threads": ("threads", 0)}
    rows = [
        [words, *(f"{soak[name][key]:,.{digits}f}" for key in ("first", "last", "least", "most"))]
        for name, (words, digits) in names.items()
    ]
    slope = soak["slope_mib_per_h"]
    told = f", {slope['value']:+.2f} MiB/h [{slope['low']:+.2f}, {slope['high']:+.2f}]" if slope else ""
    alive = [done for done in found["rounds"] if done["outcome"] == "alive"]
    sums = {key: sum(done[key] for done in alive) for key in ("asked", "failed", "uncounted", "verdicts")}
    return "\n\n".join(
        [
            table(("", "first", "last", "least", "most"), rows),
            f"Growth of what is resident: **{soak['growth']:+.2%}**{told}{_turns(soak)}. "
            f"Requests: {sums['asked']:,}, failed {sums['failed']}, **neither judged nor counted "
            f"{sums['uncounted']}**. Stored verdicts that were judged again, each with a ledger that sums to its "
            f"wall time: {sums['verdicts']:,}.",
            *_course(soak["samples"]),
        ]
    )


def _course(samples: Sequence[Sequence[float]]) -> list[str]:
    """What is resident, by stretches of time: what it comes down to again between faults, and what is usual."""
    if samples[-1][0] < 2 * _STRETCH_S:
        return []
    stretches: dict[int, list[float]] = {}
    for at_s, mib, *_ in samples:
        stretches.setdefault(int(at_s // _STRETCH_S), []).append(mib)
    whole = {at: sorted(mib) for at, mib in stretches.items() if len(mib) > _STRETCH_S / SAMPLE_S / 2}
    header = ("resident, MiB, from minute", *(f"{at * _STRETCH_S / 60:.0f}" for at in whole))
    rows = [
        ["tenth percentile", *(number(mib[len(mib) // 10]) for mib in whole.values())],
        ["median", *(number(median(mib)) for mib in whole.values())],
    ]
    return [table(header, rows)]


def _turns(soak: Figures) -> str:
    turns = soak.get("turns")
    if not turns:
        return ""
    found = f"{turns['growth']:+.2%} [{turns['low']:+.2%}, {turns['high']:+.2%}]"
    return f"; after the same fault, from its first time to its last of {turns['times']}, {found}"


_HOW = f"""# Endurance

What is done to the agent, and what becomes of it. A worker serves an open loop of requests all the time; the agent
has the user, the capabilities, the limits and the socket that its unit gives it. This page is written by the
harness; to replace its figures by your own:

```
make chaos SECONDS=3600 JSON=endurance.json
.venv/bin/python -m tests.chaos --render endurance.json --picture docs/{PICTURE} > docs/endurance.md
```

After each fault these must hold, or the run fails: no request failed, none took longer than {LONGEST_MS:.0f} ms,
and no call of the worker into the client did; the agent is alive and ready, or was started again; each request is
judged, or counted by who lost it; the ledgers of what was stored sum to the wall time, to the nanosecond; resident
memory stays below {RSS_BOUND_MIB:.0f} MiB, and descriptors and threads are what they were."""
_FAULTS = """One file each in `tests/chaos/faults/`. *Dropped by the client*: the agent did not read, the client
counted. *Died unread*: messages of all workers that a killed agent held, as the next one says; some had been
judged before. *p99*: medians over the rounds. *Slowest call*: of the worker into the client, with all that delays
a thread beside it."""
_LOST = """As the agent's own metrics have it, over all rounds; every verdict that a loss touches says so."""
