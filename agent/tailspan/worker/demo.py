"""``python -m tailspan.worker.demo``: a worker under load, a neighbour that takes its CPU, and the explanation.

Runs the agent, the reference worker, its load and the neighbour as processes of their own, on the real kernel.
Ends with 0 only if the slowest request was blamed on that neighbour, by pid.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tailspan.errors import CannotError, TailspanError

HEALTHY_S, FAULT_S, AFTER_S = 12.0, 8.0, 3.0
RATE = 8.0
NEIGHBOUR_THREADS = 12
READY_S = 60.0


@contextlib.contextmanager
def running(*module_and_arguments: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m ...``, its standard error in ``log``; ended by pid with SIGTERM."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *module_and_arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def wait_for(text: str, log: Path, process: subprocess.Popen[str]) -> None:
    """Until ``text`` is in the log; raises with the log if the process ends before."""
    deadline = time.monotonic() + READY_S
    while text not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise CannotError(f"it did not start:\n{log.read_text()}")
        time.sleep(0.05)


def first_line(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        process.wait()
        raise CannotError(f"it did not start:\n{log.read_text()}")
    return line


def say(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def demonstrate(store: Path) -> int:
    if os.geteuid() != 0:
        raise CannotError("the demo loads BPF programs: run it as root")
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    cpu = str(max(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="tailspan-demo-") as folder, contextlib.ExitStack() as stack:
        sockets = Path(folder)  # not in the store: the path of a unix socket holds 107 bytes
        agent_log = sockets / "agent.log"
        agent = stack.enter_context(
            running(
                *("tailspan", "run", "--store", str(store), "--socket", str(sockets / "worker.sock")),
                *("--set", f"agent.control={sockets / 'control.sock'}", "--set", "export.prometheus="),
                log=agent_log,
            )
        )
        wait_for("ready in", agent_log, agent)
        print(agent_log.read_text().strip().splitlines()[-1], flush=True)
        worker_log = sockets / "worker.log"
        worker = stack.enter_context(
            running(
                *("tailspan.worker", "--port", "0", "--cpus", cpu),
                log=worker_log,
                TAILSPAN_SOCKET=str(sockets / "worker.sock"),
            )
        )
        address = first_line(worker, worker_log).removeprefix("listening on ")
        say(
            f"An ONNX Runtime worker serves on cpu {cpu} at {RATE:.0f} requests/s, alone for {HEALTHY_S:.0f} s ..."
        )
        seconds = HEALTHY_S + FAULT_S + AFTER_S
        load = stack.enter_context(
            running(
                *("tailspan.worker.load", "--url", f"http://{address}/v1/infer"),
                *("--rate", str(RATE), "--seconds", str(seconds)),
                log=sockets / "load.log",
            )
        )
        time.sleep(HEALTHY_S)
        with running(
            *("tailspan.worker.neighbour", "--cpus", cpu, "--name", "backup"),
            *("--seconds", str(FAULT_S), "--threads", str(NEIGHBOUR_THREADS)),
            log=sockets / "neighbour.log",
        ) as neighbour:
            say(f"... then a neighbour: {first_line(neighbour, sockets / 'neighbour.log')}, for {FAULT_S:.0f} s")
            neighbour.wait(timeout=FAULT_S + 30)
        summary, _ = load.communicate(timeout=AFTER_S + 60)
        say("What the load saw (latency from the intended time):")
        print(summary.strip())
    return explain(store, neighbour.pid)


def explain(store: Path, culprit: int) -> int:
    """Show what the agent has stored; 0 if the slowest request's first culprit has that pid."""
    tailspan = [sys.executable, "-m", "tailspan"]
    say("$ tailspan slow --last 5")
    subprocess.run([*tailspan, "slow", "--last", "5", "--store", str(store)], check=True)
    say("$ tailspan explain --slowest")
    subprocess.run([*tailspan, "explain", "--slowest", "--store", str(store)], check=True)
    found = json.loads(
        subprocess.run(
            [*tailspan, "explain", "--slowest", "--json", "--store", str(store)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    named = (found["verdict"]["culprit"] or {}).get("pid")
    whole = sum(part["ns"] for part in found["ledger"]) == found["request"]["wall_ns"]
    right = named == culprit and found["verdict"]["cause"] == "run_queue" and whole
    say(f"The neighbour was pid {culprit}. {'That is who was named.' if right else 'THAT IS NOT WHAT WAS SAID.'}")
    print(f"Try: tailspan explain <trace-id> --store {store}; tailspan top --store {store}")
    return 0 if right else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tailspan.worker.demo", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path(".demo"), help="for what is recorded (default .demo)")
    try:
        return demonstrate(parser.parse_args().store)
    except TailspanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
