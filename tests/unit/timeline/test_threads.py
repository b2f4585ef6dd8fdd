import numpy as np

from tailspan.timeline.tables import FOREVER
from tailspan.timeline.threads import Threads
from tailspan.wire.events import THREAD_EVENT, THREAD_STATE, ThreadEventKind


def state(tid: int, followed: int = 0, taken: int = 100, tgid: int = 7, ns_tid: int = 0) -> np.ndarray:
    row = np.zeros(1, THREAD_STATE)
    row["tid"], row["tgid"], row["ns_tid"] = tid, tgid, ns_tid or tid
    row["followed_mono_ns"], row["taken_mono_ns"] = followed, taken
    return row


def event(kind: ThreadEventKind, tid: int, at: int, run: int = 0, ns_tid: int = 0) -> np.ndarray:
    row = np.zeros(1, THREAD_EVENT)
    row["kind"], row["tid"], row["tgid"], row["ns_tid"] = kind, tid, 7, ns_tid or tid
    row["mono_ns"], row["run_mono_ns"] = at, run
    return row


def lives(threads: Threads, since: int = 0) -> list[tuple[int, int, int, int]]:
    columns = ("tid", "followed_mono_ns", "gone_mono_ns", "last_run_mono_ns")
    return sorted(tuple(int(row[c]) for c in columns) for row in threads.rows(since))


def test_a_thread_is_known_from_its_birth_to_its_exit() -> None:
    threads = Threads()
    threads.apply(np.concatenate((event(ThreadEventKind.EXIT, 5, 90, run=70), event(ThreadEventKind.BORN, 5, 10))))

    assert lives(threads) == [(5, 10, 90, 70)]
    assert lives(threads, since=91) == []


def test_a_tid_that_is_used_again_is_another_life() -> None:
    threads = Threads()
    threads.apply(event(ThreadEventKind.BORN, 5, 10))
    threads.apply(event(ThreadEventKind.EXIT, 5, 20, run=15))
    threads.apply(event(ThreadEventKind.BORN, 5, 30))

    assert lives(threads) == [(5, 10, 20, 15), (5, 30, FOREVER, 0)]


def test_a_birth_ends_a_life_whose_exit_was_lost() -> None:
    threads = Threads()
    threads.apply(event(ThreadEventKind.BORN, 5, 10))
    threads.apply(event(ThreadEventKind.BORN, 5, 30))

    assert lives(threads) == [(5, 10, 30, 30), (5, 30, FOREVER, 0)]


def test_a_thread_that_a_look_no_longer_finds_is_gone() -> None:
    threads = Threads()
    threads.see(np.concatenate((state(5), state(6))))
    threads.apply(event(ThreadEventKind.BORN, 8, 150))  # after the look below

    threads.forget_missing(state(6, taken=120))

    assert [life[0] for life in lives(threads) if life[2] == FOREVER] == [6, 8]


def test_ids_of_a_pid_namespace_are_translated_per_process() -> None:
    threads = Threads()
    threads.see(state(900, tgid=900, ns_tid=1))
    threads.apply(event(ThreadEventKind.BORN, 905, 10, ns_tid=4))

    assert threads.host_tid(900, 1) == 900
    assert threads.host_tid(7, 4) == 905
    assert threads.host_tid(900, 4) == 0


def test_of_the_threads_that_are_gone_only_so_many_are_remembered() -> None:
    threads = Threads(max_gone=3)
    for tid in range(10):
        threads.apply(event(ThreadEventKind.BORN, tid + 1, tid * 10))
        threads.apply(event(ThreadEventKind.EXIT, tid + 1, tid * 10 + 5))

    assert [life[0] for life in lives(threads)] == [8, 9, 10]
    assert threads.host_tid(7, 1) == 0
    assert threads.host_tid(7, 10) == 10


def test_threads_that_are_long_gone_are_forgotten() -> None:
    threads = Threads()
    for tid in range(10):
        threads.apply(event(ThreadEventKind.BORN, tid + 1, tid * 10))
        threads.apply(event(ThreadEventKind.EXIT, tid + 1, tid * 10 + 5))

    threads.evict(75)

    assert [life[0] for life in lives(threads)] == [8, 9, 10]
    assert threads.host_tid(7, 7) == 0
    assert threads.host_tid(7, 8) == 8


def test_the_name_of_a_thread_whose_number_another_process_has_now_is_forgotten_with_it() -> None:
    threads = Threads(max_gone=1)
    # GIVEN a thread that has ended, and its number with another process
    threads.see(state(5, tgid=7, ns_tid=23))
    threads.apply(event(ThreadEventKind.EXIT, 5, 20))
    threads.see(state(5, followed=30, tgid=8, ns_tid=29))
    assert threads.host_tid(7, 23) == 5
    # WHEN it is forgotten
    threads.apply(np.concatenate((event(ThreadEventKind.BORN, 6, 40), event(ThreadEventKind.EXIT, 6, 50))))
    # THEN only the other one's is known
    assert (threads.host_tid(7, 23), threads.host_tid(8, 29)) == (0, 5)
