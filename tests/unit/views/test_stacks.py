from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tailspan.views import stacks
from tailspan.views.stacks import Report, Wait

MS = 1_000_000
LOCK = (
    ("__lll_lock_wait", "libc.so.6"),
    ("app::Store::get()", "worker"),
    ("main", "worker"),
    ("_start", "worker"),
)
FUTEX = (
    ("futex_do_wait", "kernel"),
    ("__x64_sys_futex", "kernel"),
    ("do_syscall_64", "kernel"),
    ("entry_SYSCALL_64_after_hwframe", "kernel"),
)
WAIT = Wait(8100, 8101, "worker", 23, 700 * MS, 2 * MS, 50 * MS, 0, False, False, LOCK, FUTEX)
READ = replace(
    WAIT,
    tid=8102,
    comm="reader",
    count=1,
    blocked_ns=5000 * MS,
    longest_ns=5000 * MS,
    unfinished=1,
    throughout=True,
    user=(("__read", "libc.so.6"),),
    kernel=(("pipe_read", "kernel"),),
)


def report(*waits: Wait, **given: object) -> Report:
    facts = {"pids": (8100,), "seconds": 5.0, "floor_ns": MS, "waits": waits, "short": (0, 0), "lost": (0, 0)}
    return Report(**(facts | given))  # type: ignore[arg-type]


def test_sentence_table_and_stacks_innermost_first() -> None:
    text = stacks.as_text(report(WAIT, replace(WAIT, tid=8103, blocked_ns=300 * MS), READ, short=(4102, 120 * MS)))
    assert (
        text
        == """\
3 threads of process 8100 were blocked for 6000.0 ms in all, in 47 waits of 1.0
ms or more, within 5.0 s.

blocked ms   share  waits    longest  runq ms  threads
    5000.0  83.3 %      1  5000.0 ms      2.0  reader 8102
    user    __read (libc.so.6)
    kernel  pipe_read
    since before this began: for longer, and its callers are not known

    1000.0  16.7 %     46    50.0 ms      4.0  2: worker
    user    __lll_lock_wait (libc.so.6) < app::Store::get() (worker) < main <
            _start
    kernel  futex_do_wait < __x64_sys_futex

shorter than 1.0 ms: 4102 waits, 120.0 ms in all"""
    )


def test_places_beyond_the_top_are_summed() -> None:
    waits = [replace(WAIT, blocked_ns=n * MS, user=((f"wait_{n}", "worker"), *LOCK)) for n in range(1, 8)]
    lines = stacks.as_text(report(*waits), top=2).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("    user")] == ["wait_7", "wait_6"]
    assert lines[-1] == "5 more places, 15.0 ms in all: --top 7 shows them"


def notes(*waits: Wait, **given: object) -> list[str]:
    found: list[str] = stacks.as_json(report(*waits, **given))["notes"]
    return found


def test_whole_stacks_have_no_notes() -> None:
    in_stripped_libc = replace(WAIT, user=(("wait_ms", "worker"), ("__libc_start_call_main", "libc.so.6")))
    thread = replace(WAIT, user=(("wait_ms", "worker"), ("start_thread", "libc.so.6")))
    kernel_thread = replace(WAIT, user=())
    assert notes(WAIT, READ, in_stripped_libc, thread, kernel_thread) == []


def test_missing_frame_pointers_are_told_with_the_file_and_the_share_of_time() -> None:
    alone = replace(WAIT, blocked_ns=300 * MS, user=(("clock_nanosleep", "libc.so.6"),))
    short = replace(WAIT, blocked_ns=200 * MS, user=(("wait_ms", "worker"), ("run", "libonnx.so")))
    (note,) = notes(replace(WAIT, blocked_ns=500 * MS), alone, short)
    assert note.startswith("user stacks of 50.0 % of the time stop early: in libc.so.6, libonnx.so, which")


def test_frames_without_symbols_are_counted() -> None:
    stripped = replace(WAIT, user=(("", "libfoo.so"), ("", ""), *LOCK))
    assert notes(WAIT, stripped) == ["2 of 10 user frames have no symbol: in libfoo.so, code in no file"]
    assert "[unknown] (libfoo.so) < [unknown] < __lll_lock_wait" in stacks.as_text(report(stripped), 200)
    assert notes(replace(WAIT, kernel=(("", ""),)))[0].startswith("symbols of the kernel are hidden: CAP_SYSLOG")


def test_losses_and_ended_processes_are_told() -> None:
    told = notes(WAIT, replace(WAIT, stack_lost=True, user=()), lost=(29, 31 * MS), ended=(8100,))
    assert told[0] == "29 waits lost, 31.0 ms or more: if they are many, raise --min"
    assert told[1] == "stacks of 50.0 % of the time lost to a full table: raise --min"
    assert told[2].startswith("process 8100 has ended")
    lost = replace(WAIT, stack_lost=True, user=())
    assert "user    not known: the table of stacks was full" in stacks.as_text(report(lost))


def test_folded_is_outermost_first_in_microseconds_and_summed_over_threads() -> None:
    found = report(WAIT, replace(WAIT, tid=8103), replace(WAIT, comm="a;b c", user=()))
    kernel = "entry_SYSCALL_64_after_hwframe_[k];do_syscall_64_[k];__x64_sys_futex_[k];futex_do_wait_[k]"
    assert stacks.as_folded(found).splitlines() == [
        f"a:b c;[no user stack];{kernel} 700000",
        f"worker;_start;main;app::Store::get();__lll_lock_wait;{kernel} 1400000",
    ]


def test_json_has_threads_of_each_place() -> None:
    other = replace(WAIT, tgid=8200, tid=8200, blocked_ns=900 * MS, unfinished=1)
    (place,) = stacks.as_json(report(WAIT, other))["places"]
    assert (place["blocked_ns"], place["count"], place["unfinished"]) == (1600 * MS, 46, 1)
    assert [(thread["pid"], thread["tid"], thread["blocked_ns"]) for thread in place["threads"]] == [
        (8200, 8200, 900 * MS),
        (8100, 8101, 700 * MS),
    ]
    assert place["user"][1] == {"function": "app::Store::get()", "file": "worker"}


names = st.text(max_size=90)
frames = st.lists(st.tuples(names, names), max_size=5).map(tuple)
waits = st.builds(
    Wait,
    *[st.integers(1, 2**22)] * 2,
    names,
    *[st.integers(1, 10**6)] + [st.integers(0, 10**13)] * 3 + [st.integers(0, 1)],
    *[st.booleans()] * 2,
    *[frames] * 2,
)


@given(st.lists(waits, min_size=1, max_size=6), st.integers(1, 200))
def test_names_of_strangers_break_neither_text_nor_lines(given: list[Wait], width: int) -> None:
    found = report(*given)
    for line in stacks.as_text(found, width).split("\n"):
        assert len(line) <= max(width, 60)
        assert line.isprintable()
    total = sum(wait.blocked_ns for wait in given)
    assert sum(place["blocked_ns"] for place in stacks.as_json(found)["places"]) == total
    folded = stacks.as_folded(found).split("\n")
    assert all(line.isprintable() and line.rpartition(" ")[2].isdecimal() for line in folded)
    assert abs(sum(int(line.rpartition(" ")[2]) for line in folded) - total / 1000) <= len(folded)
