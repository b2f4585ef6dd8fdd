"""What serves and what asks in :mod:`tests.bench.worker`: worker, agent and load, as processes ended by pid."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import psutil

from tailspan.errors import TailspanError
from tests.bench.spread import Figures

#: Tables of the agent's window that the kernel fills.
RECORDS = ("cycles", "slices", "sockets", "blocks", "incidents")
CONNECTIONS = 16  #: two full batches: one runs, one gathers

_DEADLINE_S = 60.0
_SILENT = """
import sys
import tailspan.client
client = tailspan.client.connect("silent", path=sys.argv[1])
if client.connection.ready():
    print("connected", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def worker(folder: Path) -> Iterator[str]:
    """The reference worker; gives the URL of its model."""
    command = [sys.executable, "-m", "tailspan.worker", "--port", "0", "--model-dir", str(folder / "models")]
    environ = os.environ | {"TAILSPAN_SOCKET": str(_socket(folder))}
    with _process(command, folder / "worker.log", environ) as process:
        _until(lambda: "listening on" in _said(folder / "worker.log"), process, folder / "worker.log")
        address = re.search(r"listening on (\S+)", _said(folder / "worker.log"))
        assert address
        yield f"http://{address[1]}/v1/infer"


class Agent:
    """A running agent. Its counters are cumulative: two :meth:`reading` are subtracted."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self._process = process
        self._log = log
        self._ps = psutil.Process(process.pid)
        self.metrics_url = f"http://127.0.0.1:{port}/metrics"

    @property
    def cpu_s(self) -> float:
        """What it has used of one core; to ask for it costs the agent nothing."""
        times = self._ps.cpu_times()
        return float(times.user + times.system)

    def wait_for_worker(self) -> None:
        """Until it follows a process, whatever for."""
        _until(lambda: "following pid" in _said(self._log), self._process, self._log)

    def reading(self) -> Figures:
        try:
            with urllib.request.urlopen(self.metrics_url) as response:
                metrics = _metrics(response.read().decode())
        except OSError as error:
            raise TailspanError(f"the agent does not answer: {error}: {_said(self._log)[-500:]}") from None
        status = dict(re.findall(r"^(Vm\w+):\s+(\d+) kB", Path(f"/proc/{self._ps.pid}/status").read_text(), re.M))
        return {
            "mono_s": time.monotonic(),
            "cpu_s": self.cpu_s,
            "rss_mib": int(status["VmRSS"]) / 1024,
            "peak_rss_mib": int(status["VmHWM"]) / 1024,
            "records_by_class": {
                _label(series): round(value)
                for series, value in metrics.items()
                if series.startswith("tailspan_records_total{")
            },
            "verdicts_within": {
                _label(series).replace("+Inf", "inf"): round(value)
                for series, value in metrics.items()
                if series.startswith("tailspan_verdict_latency_seconds_bucket{")
            },
            "records": sum(_of(metrics, "tailspan_window_rows", table=name) for name in RECORDS),
            "probes": sorted(
                _label(series)
                for series, value in metrics.items()
                if series.startswith("tailspan_probe_attached{") and value
            ),
            "requests_judged": _of(metrics, "tailspan_request_duration_seconds_count"),
            "slow": _of(metrics, "tailspan_slow_requests_total"),
            "lost": {
                _label(series): round(value)
                for series, value in metrics.items()
                if series.startswith(("tailspan_lost_records_total{", "tailspan_dropped_messages_total{"))
            },
        }


@contextlib.contextmanager
def agent(
    folder: Path, disabled: Collection[str] = (), settings: Mapping[str, object] | None = None
) -> Iterator[Agent]:
    """An agent of its own. Its configuration differs from the default in where things are, and in what is given.

    ``disabled``: probes; ``settings``: keys of the configuration, as ``--set`` takes them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    differing = {
        "worker.socket": _socket(folder),
        "agent.control": folder / "control.sock",
        "store.path": folder / "store",
        "export.prometheus": f"127.0.0.1:{port}",
        "probes.disabled": ",".join(sorted(disabled)),
        "budget.cpu": 0,  # what it would cost, not what it does without
        "budget.rss_mib": 0,
        **(settings or {}),
    }
    command = [sys.executable, "-m", "tailspan", "run", "--config", os.devnull]
    for key, value in differing.items():
        command += ["--set", f"{key}={value}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TAILSPAN_"))}
    log = folder / "agent.log"
    with _process(command, log, environ) as process:
        _until(lambda: "ready in" in _said(log), process, log)
        yield Agent(process, log, port)


@contextlib.contextmanager
def _process(command: list[str], log: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def closed(folder: Path, url: str, requests: int) -> Figures:
    """All of them due at once: each connection sends its next request when it has its answer."""
    return load(folder, url, 1e6, requests / 1e6, CONNECTIONS)


def load(folder: Path, url: str, rate: float, seconds: float, connections: int = 64) -> Figures:
    result = folder / "load.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tailspan.worker.load", "--url", url, "--rate", str(rate)]
    command += ["--seconds", str(seconds), "--connections", str(connections), "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not result.exists():
        raise TailspanError(f"the load generator failed: {done.stderr[-500:]}")
    summary: Figures = json.loads(result.read_text())
    return summary


@contextlib.contextmanager
def silent_worker(folder: Path) -> Iterator[int]:
    """The pid of a process that has connected by the client, and does nothing."""
    command = [sys.executable, "-c", _SILENT, str(_socket(folder))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "connected\n":
                raise TailspanError("the client cannot connect to the agent")
            yield process.pid
        finally:
            process.terminate()


def _socket(folder: Path) -> Path:
    return folder / "worker.sock"


def _said(log: Path) -> str:
    return log.read_text(errors="replace")


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise TailspanError(f"{process.args!r} did not get ready: {_said(log)[-500:]}")
        time.sleep(0.02)


def _metrics(text: str) -> dict[str, float]:
    """Series with its labels -> value."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {series: float(value) for series, _, value in lines}


def _label(series: str) -> str:
    """The value of its only label."""
    return series.split('"')[1]


def _of(metrics: dict[str, float], family: str, **labels: str) -> float:
    """Sum of a family's series that carry these labels."""
    return sum(
        value
        for series, value in metrics.items()
        if series.partition("{")[0] == family and all(f'{key}="{text}"' in series for key, text in labels.items())
    )
