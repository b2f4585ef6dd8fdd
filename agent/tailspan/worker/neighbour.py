"""``python -m tailspan.worker.neighbour``: a noisy neighbour, the known culprit of demos and tests.

Threads that compute without a pause, on CPUs and under a name of your choice, until the time is over or a SIGTERM.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tailspan.errors import CannotError, TailspanError
from tailspan.worker.arguments import cpu_list, positive_float, positive_int
from tailspan.worker.comm import name_this_thread

CGROUPS = Path("/sys/fs/cgroup")

#: Taken by the main thread when it waits for them, and not before.
SIGNALS = {signal.SIGTERM, signal.SIGINT}

#: About 5 ms of work in one call, which lets go of the GIL: the threads compete for the CPU and for nothing else.
_ROUNDS = 20_000


def burn(name: str) -> None:
    name_this_thread(name)
    while True:
        hashlib.pbkdf2_hmac("sha256", b"neighbour", b"salt", _ROUNDS)


@contextmanager
def in_cgroup(name: str) -> Iterator[None]:
    """This process in a new group of the cpu controller, v1 or v2; removed at the end."""
    unified = (CGROUPS / "cgroup.controllers").exists()
    parent = CGROUPS if unified else CGROUPS / "cpu"
    group = parent / name
    try:
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise CannotError(f"cannot enter the cgroup {group}: {error.strerror} (it takes root)") from None
    try:
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))  # a group with a process in it cannot be removed
        group.rmdir()


def disturb(args: argparse.Namespace) -> None:
    """Burn until the time is over or a signal of ``SIGNALS`` comes."""
    name_this_thread(args.name)
    for _ in range(args.threads):
        threading.Thread(target=burn, args=(args.name,), daemon=True).start()
    print(f"{args.name}[{os.getpid()}] burns on cpus {sorted(os.sched_getaffinity(0))}", flush=True)
    signal.sigtimedwait(SIGNALS, args.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tailspan.worker.neighbour", description=__doc__)
    parser.add_argument("--cpus", type=cpu_list, metavar="LIST", help="run on these only, e.g. 1 or 0,2-3")
    parser.add_argument("--threads", type=positive_int, default=8, metavar="N", help="(default 8)")
    parser.add_argument("--seconds", type=positive_float, default=10.0, help="(default 10)")
    parser.add_argument("--name", default="neighbour", help="of the process and its threads (default neighbour)")
    parser.add_argument("--cgroup", type=cgroup_name, metavar="NAME", help="run in a new cgroup of this name")
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before there are threads: they inherit it
    if args.cpus:
        os.sched_setaffinity(0, args.cpus)
    try:
        with in_cgroup(args.cgroup) if args.cgroup else nullcontext():
            disturb(args)
    except TailspanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    os._exit(0)  # at once: the interpreter's own end would wait its turn behind the burning threads


def cgroup_name(text: str) -> str:
    if not text or "/" in text or text.startswith("."):
        raise argparse.ArgumentTypeError("one name, without a path")
    return text


if __name__ == "__main__":
    sys.exit(main())
