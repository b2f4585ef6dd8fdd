"""Where threads wait, and in whose code: stacks with the time blocked in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import dropwhile, groupby
from typing import Any

from tailspan.views.table import MIN_WIDTH, clip, duration, grid, ms, percent, plain, wrap

#: (function, file it is in); either is "" where it is not known.
Frame = tuple[str, str]

UNKNOWN = "[unknown]"
#: A name in the text. Templates of C++ have names of hundreds of characters; JSON and folded have them whole.
_NAME_WIDTH = 72
_INDENT = " " * 4
#: Where threads and processes begin: a user stack that ends in one of these is whole.
_ROOTS = {"_start", "__libc_start_main", "__libc_start_call_main", "start_thread", "clone", "clone3", "__clone3"}
#: The files where they begin; their own symbols are often stripped.
_ROOT_FILES = re.compile(r"(libc|libpthread|ld-linux.*|ld-musl.*)[-.]")
#: How a system call, or a kernel thread, came in: of every kernel stack, and left out of the text.
_ENTRY = re.compile(r"entry_|do_syscall_|x64_sys_call|el0|do_el0|invoke_syscall|ret_from_fork")
_PLACE_FACTS = (
    *("blocked_ns", "runq_ns", "longest_ns", "count"),
    *("unfinished", "throughout", "stack_lost", "stops_early"),
)


@dataclass(frozen=True, slots=True)
class Wait:
    """One thread's waits at one place. Stacks innermost first, empty where there is none."""

    tgid: int
    tid: int
    comm: str
    count: int
    blocked_ns: int  #: until it was woken
    runq_ns: int  #: from then until it ran
    longest_ns: int
    unfinished: int  #: of ``count``, how many were not over at the end
    throughout: bool  #: it waited before anybody looked: longer than is known, and its user stack is one frame
    stack_lost: bool  #: a table was full: the stacks are not known
    user: tuple[Frame, ...]
    kernel: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Report:
    pids: tuple[int, ...]
    seconds: float
    floor_ns: int  #: shorter waits are only counted
    waits: tuple[Wait, ...]
    short: tuple[int, int]  #: waits below the floor: how many, and their ns
    lost: tuple[int, int]  #: waits that a table had no place for, or whose end was not seen; and their known ns
    ended: tuple[int, ...] = ()  #: processes that ended meanwhile


@dataclass(frozen=True, slots=True)
class Place:
    """All waits with the same stacks, of whichever thread."""

    waits: tuple[Wait, ...]  #: the longest first; at least one

    @property
    def user(self) -> tuple[Frame, ...]:
        return self.waits[0].user

    @property
    def kernel(self) -> tuple[Frame, ...]:
        return self.waits[0].kernel

    @property
    def throughout(self) -> bool:
        return self.waits[0].throughout

    @property
    def stack_lost(self) -> bool:
        return self.waits[0].stack_lost

    @property
    def count(self) -> int:
        return sum(wait.count for wait in self.waits)

    @property
    def unfinished(self) -> int:
        return sum(wait.unfinished for wait in self.waits)

    @property
    def blocked_ns(self) -> int:
        return sum(wait.blocked_ns for wait in self.waits)

    @property
    def runq_ns(self) -> int:
        return sum(wait.runq_ns for wait in self.waits)

    @property
    def longest_ns(self) -> int:
        return max(wait.longest_ns for wait in self.waits)

    @property
    def stops_early(self) -> bool:
        """Its user stack does not reach the thread's beginning: something in it has no frame pointers."""
        if not self.user or self.throughout:
            return False
        name, file = self.user[-1]
        return name not in _ROOTS and not (len(self.user) > 1 and _ROOT_FILES.match(file))


def places(waits: Sequence[Wait]) -> list[Place]:
    """The one with the most time first."""

    def where(wait: Wait) -> tuple[Any, ...]:
        return wait.throughout, wait.stack_lost, wait.user, wait.kernel

    grouped = [list(group) for _, group in groupby(sorted(waits, key=where), key=where)]
    merged = [Place(tuple(sorted(group, key=lambda wait: (-wait.blocked_ns, wait.tid)))) for group in grouped]
    return sorted(merged, key=lambda place: (-place.blocked_ns, place.waits[0].tid))


def as_text(report: Report, width: int = 80, top: int = 10) -> str:
    """A sentence, the ``top`` places with their stacks, innermost function first, and what is not known."""
    width = max(width, MIN_WIDTH)
    found = places(report.waits)
    whole_ns = sum(place.blocked_ns for place in found)
    table: list[tuple[str, ...]] = [("blocked ms", "share", "waits", "longest", "runq ms", "threads")]
    table += [
        (
            ms(place.blocked_ns),
            percent(place.blocked_ns, whole_ns),
            str(place.count),
            duration(place.longest_ns),
            ms(place.runq_ns),
            _threads(place),
        )
        for place in found[:top]
    ]
    head, *rows = grid(table, width, right=(0, 1, 2, 3, 4), elastic=5)
    lines = [*wrap(_sentence(report, whole_ns), width), "", head]
    for row, place in zip(rows, found, strict=False):
        lines += [row, *_stacks(place, width), ""]
    for note in [*_rest(found[top:], len(found)), *_notes(report, found)]:
        lines += wrap(note, width, hanging="  ")
    return "\n".join(lines).rstrip("\n")


def as_json(report: Report) -> dict[str, Any]:
    found = places(report.waits)
    return {
        "pids": list(report.pids),
        "seconds": report.seconds,
        "floor_ns": report.floor_ns,
        "places": [
            {
                **{name: getattr(place, name) for name in ("blocked_ns", "runq_ns", "longest_ns", "count")},
                **{
                    name: getattr(place, name)
                    for name in ("unfinished", "throughout", "stack_lost", "stops_early")
                },
                "user": [_frame_json(frame) for frame in place.user],
                "kernel": [_frame_json(frame) for frame in place.kernel],
                "threads": [_thread_json(wait) for wait in place.waits],
            }
            for place in found
        ],
        "short": dict(zip(("count", "blocked_ns"), report.short, strict=True)),
        "lost": dict(zip(("count", "blocked_ns"), report.lost, strict=True)),
        "ended": list(report.ended),
        "notes": _notes(report, found),
    }


def as_folded(report: Report) -> str:
    """``comm;outermost;...;innermost µs``, kernel functions marked ``_[k]``: what flame graphs are drawn from."""
    folded: Counter[str] = Counter()
    for wait in report.waits:
        user = [_folded(name) for name, _ in reversed(wait.user)] or ["[no user stack]"]
        kernel = [f"{_folded(name)}_[k]" for name, _ in reversed(wait.kernel)]
        folded[";".join([_folded(wait.comm), *user, *kernel])] += wait.blocked_ns
    return "\n".join(f"{stack} {round(ns / 1000)}" for stack, ns in sorted(folded.items()))


def _folded(name: str) -> str:
    return plain(name).replace(";", ":") or UNKNOWN


def _frame_json(frame: Frame) -> dict[str, str | None]:
    name, file = frame
    return {"function": plain(name) or None, "file": plain(file) or None}


def _thread_json(wait: Wait) -> dict[str, Any]:
    named = ("comm", "count", "blocked_ns", "runq_ns", "longest_ns", "unfinished")
    body = {key: value for key, value in asdict(wait).items() if key in named}
    return {"pid": wait.tgid, "tid": wait.tid, **body, "comm": plain(wait.comm)}


def _sentence(report: Report, whole_ns: int) -> str:
    threads = len({wait.tid for wait in report.waits})
    waits = sum(wait.count for wait in report.waits)
    processes = len({wait.tgid for wait in report.waits})
    of = f"process {report.waits[0].tgid}" if processes == 1 else f"{processes} processes"
    who = f"{_some(threads, 'thread')} of {of} {'was' if threads == 1 else 'were'}"
    return (
        f"{who} blocked for {ms(whole_ns)} ms in all, in {_some(waits, 'wait')} of {duration(report.floor_ns)}"
        f" or more, within {report.seconds:.1f} s."
    )


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _threads(place: Place) -> str:
    tids = {wait.tid for wait in place.waits}
    comms = list(dict.fromkeys(plain(wait.comm) for wait in place.waits))
    return f"{comms[0]} {min(tids)}" if len(tids) == 1 else f"{len(tids)}: {', '.join(comms)}"


def _stacks(place: Place, width: int) -> list[str]:
    lost = "not known: the table of stacks was full" if place.stack_lost else ""
    lines = _stack("user", place.user, width, lost or "none")
    inside = list(dropwhile(lambda frame: _ENTRY.match(frame[0]), reversed(place.kernel)))[::-1]
    lines += _stack("kernel", inside, width, lost or "not known")
    if place.throughout:
        lines += wrap("since before this began: for longer, and its callers are not known", width, _INDENT)
    elif place.unfinished:
        lines += wrap(f"{place.unfinished} of these not over yet", width, _INDENT)
    return lines


def _stack(title: str, frames: Sequence[Frame], width: int, absent: str) -> list[str]:
    named = []
    before = ""
    for name, file in frames:
        told = f" ({plain(file)})" if file and file != before and title == "user" else ""
        named.append(clip(plain(name) or UNKNOWN, _NAME_WIDTH) + told)
        before = file
    return wrap(f"{title:<7} {' < '.join(named) or absent}", width, _INDENT, " " * 8)


def _rest(more: Sequence[Place], total: int) -> list[str]:
    if not more:
        return []
    blocked_ns = sum(place.blocked_ns for place in more)
    return [f"{_some(len(more), 'more place')}, {ms(blocked_ns)} ms in all: --top {total} shows them"]


def _notes(report: Report, found: Sequence[Place]) -> list[str]:
    """What the numbers leave out, each in a sentence."""
    whole_ns = sum(place.blocked_ns for place in found)
    early = _by_file(found, lambda place: place.user[-1:] if place.stops_early else ())
    early_ns = sum(place.blocked_ns for place in found if place.stops_early)
    frames = [frame for place in found for frame in place.user]
    nameless = [frame for frame in frames if not frame[0]]
    kernel = [frame for place in found for frame in place.kernel]
    notes = []
    if report.short[0]:
        short, short_ns = report.short
        notes.append(f"shorter than {duration(report.floor_ns)}: {_some(short, 'wait')}, {ms(short_ns)} ms in all")
    if early_ns:
        notes.append(
            f"user stacks of {percent(early_ns, whole_ns)} of the time stop early: in {early}, which has no frame"
            " pointers, or its caller has none (build with -fno-omit-frame-pointer)"
        )
    if nameless:
        where = _by_file(found, lambda place: tuple(frame for frame in place.user if not frame[0]))
        notes.append(f"{len(nameless)} of {len(frames)} user frames have no symbol: in {where}")
    if any(not name for name, _ in kernel):
        notes.append("symbols of the kernel are hidden: CAP_SYSLOG, and kernel.kptr_restrict below 2, show them")
    if report.lost[0]:
        lost, lost_ns = report.lost
        notes.append(f"{_some(lost, 'wait')} lost, {ms(lost_ns)} ms or more: if they are many, raise --min")
    if lost_ns := sum(place.blocked_ns for place in found if place.stack_lost):
        notes.append(f"stacks of {percent(lost_ns, whole_ns)} of the time lost to a full table: raise --min")
    notes += [f"process {pid} has ended: what it loaded late has no symbols" for pid in report.ended]
    return notes


def _by_file(found: Sequence[Place], frames: Callable[[Place], tuple[Frame, ...]]) -> str:
    """Files of some frames of each place, the one with the most time first; at most three."""
    times: Counter[str] = Counter()
    for place in found:
        for file in dict.fromkeys(file for _, file in frames(place)):
            times[plain(file) or "code in no file"] += place.blocked_ns
    named = [file for file, _ in times.most_common(3)]
    return ", ".join(named) + (f" and {len(times) - 3} more" if len(times) > 3 else "")
