"""``python -m tailspan.worker``: serve until SIGTERM or SIGINT. SIGUSR2: profile slow runs for a while."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import tailspan.client
from tailspan.client.ort import Profiler
from tailspan.errors import TailspanError, UsageError
from tailspan.worker import model
from tailspan.worker.arguments import cpu_list, positive_float, positive_int
from tailspan.worker.batching import Batcher
from tailspan.worker.cuda import Device
from tailspan.worker.runner import Runner
from tailspan.worker.server import Server

#: How long requests that were taken may need to be answered after SIGTERM.
GRACE_S = 5.0
#: How soon the listener sees that it is to stop.
STOP_POLL_S = 0.1
#: Taken by the main thread when it waits for them, and not before.
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tailspan.worker", description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=8000, help="on 127.0.0.1; 0 takes a free one (default 8000)")
    add("--max-batch", type=positive_int, default=8, metavar="N", help="requests in one run (default 8)")
    add("--max-wait-ms", type=positive_float, default=5.0, metavar="MS", help="for a batch to fill (default 5)")
    add(
        "--queue",
        type=positive_int,
        default=64,
        metavar="N",
        help="requests that may wait (default 64); 503 beyond",
    )
    add(
        "--intra-op-threads", type=positive_int, metavar="N", help="of ONNX Runtime (default: the CPUs it may use)"
    )
    add("--model-width", type=positive_int, default=64, metavar="N", help="channels; time grows with the square")
    add("--model-dir", type=Path, metavar="DIR", help="keep the model here, to start faster (default: rebuild it)")
    add("--cpus", type=cpu_list, metavar="LIST", help="run on these only, e.g. 1 or 0,2-3")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if it can be had (default)")
    add("--device-id", type=int, default=0, metavar="N", help="which of the CUDA devices it may use (default 0)")
    add("--gpu-calls", type=positive_int, metavar="N", help="also launch N kernels a batch by the CUDA driver")
    add("--gpu-allocate", type=positive_int, metavar="BYTES", help="... and allocate and free so much GPU memory")
    add(
        "--profile-seconds",
        type=positive_float,
        default=5.0,
        metavar="S",
        help="SIGUSR2 has ONNX Runtime profile slow runs for so long (default 5)",
    )
    add("--profile-all", action="store_true", help="... and take all runs for slow")
    args = parser.parse_args(arguments)
    if args.gpu_allocate and not args.gpu_calls:
        parser.error("--gpu-allocate goes with --gpu-calls")
    return args


def main() -> int:
    args = parse()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before there are threads: they inherit it
    try:
        return serve(args)
    except TailspanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def pin(cpus: set[int]) -> None:
    """Every thread there is: numpy has some already. Those that come inherit it."""
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


def make_profiler(loaded: model.Model, args: argparse.Namespace) -> Profiler[model.Model]:
    def make(prefix: str) -> model.Model:
        profiled = loaded.profiled(prefix)
        profiled.warm(args.max_batch)
        return profiled

    return Profiler(loaded, make, slow_only=not args.profile_all)


def serve(args: argparse.Namespace) -> int:
    if args.cpus:
        pin(args.cpus)
    threads = args.intra_op_threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        return serve_from(args.model_dir or Path(folder), threads, args)


def serve_from(folder: Path, threads: int, args: argparse.Namespace) -> int:
    """``folder``: of the model's file, which is read again when it is to be profiled."""
    loaded = model.load(folder, args.model_width, threads, args.device, args.device_id)
    loaded.warm(args.max_batch)
    profiler = make_profiler(loaded, args)
    device = Device(args.device_id) if args.gpu_calls else None
    runner = Runner(loaded, profiler, device, launches=args.gpu_calls or 0, allocate_bytes=args.gpu_allocate or 0)
    client = tailspan.client.connect(service="tailspan-worker", service_version=model.VERSION)
    batcher = Batcher(
        runner.run,
        client,
        model.NAME,
        max_batch=args.max_batch,
        max_wait_s=args.max_wait_ms / 1000,
        queue=args.queue,
        about=runner.about,
    )
    try:
        server = Server(("127.0.0.1", args.port), batcher, client)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on port {args.port}: {error}") from None
    accepting = threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,), name="accept")
    accepting.start()
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    why = f" ({loaded.why_not_cuda})" if loaded.why_not_cuda else ""
    print(f"{model.NAME} width {args.model_width} on {loaded.provider}{why}, {threads} threads", file=sys.stderr)
    wait_for_the_end(profiler, args.profile_seconds)
    answered = server.stop(GRACE_S)
    batcher.stop()
    client.close()
    if not answered:
        print(f"error: requests were still in flight after {GRACE_S} s", file=sys.stderr)
    return 0 if answered else 1


def wait_for_the_end(profiler: Profiler[model.Model], profile_s: float) -> None:
    """Profile after each SIGUSR2, return after another of the signals.

    A signal, for those alone may send it who could stop the worker too; whoever may ask for an inference may not
    slow down everybody's.
    """
    while signal.sigwait(SIGNALS) == signal.SIGUSR2:
        profiler.open(profile_s)


if __name__ == "__main__":
    sys.exit(main())
