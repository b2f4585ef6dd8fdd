"""The agent as its unit runs it: a user of its own, two capabilities, limits, and a socket that outlives it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tailspan
from tailspan.errors import CannotError

NOBODY = 65534
Metrics = Mapping[str, float]  #: series as written there -> value

_READY_S, _END_S, _ANSWER_S = 60.0, 30.0, 20.0
_CAPABILITIES = "-all,+bpf,+perfmon"
#: Nothing of it outlives whoever started it.
AS_ROOT = ("setpriv", "--pdeathsig", "KILL")
AS_NOBODY = (
    *(*AS_ROOT, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
    *(f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}", f"--bounding-set={_CAPABILITIES}"),
)
#: Joins the groups, takes the listener as systemd hands it over, and becomes the agent.
_START = 'for each in $JOIN; do echo $$ >"$each"; done; exec 3<&{listener}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'


@dataclass(frozen=True, slots=True)
class Reading:
    """What the agent's process holds."""

    rss_mib: float
    peak_rss_mib: float
    fds: int
    threads: int


def can_be_nobodys() -> bool:
    """Whether that user can run the package: a checkout may lie where root alone may enter."""
    command = [*AS_NOBODY, sys.executable, "-m", "tailspan", "--version"]
    return subprocess.run(command, capture_output=True, cwd="/", env=_environment({}), check=False).returncode == 0


class Agent:
    """Started, and ready, once it is made. Raises :class:`CannotError` where it does not get ready."""

    def __init__(
        self,
        log: Path,
        listener: socket.socket,
        join: list[Path],
        prefix: tuple[str, ...],
        words: list[str],
        environ: Mapping[str, str],
        port: int,
    ) -> None:
        self.log, self._port = log, port
        start = _START.format(listener=listener.fileno())
        with log.open("w") as out:
            self.process = subprocess.Popen(
                ["bash", "-c", start, "-", *prefix, sys.executable, "-m", "tailspan", "run", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[listener.fileno()],
                env=_environment(environ) | {"JOIN": " ".join(map(str, join))},
            )
        deadline = time.monotonic() + _READY_S
        while "ready in" not in self.said():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise CannotError(f"the agent did not get ready: {self.said()[-2000:]}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def metrics(self) -> Metrics:
        """Raises :class:`OSError` where it does not answer."""
        lines = (line.rpartition(" ") for line in self._get("/metrics")[1].splitlines() if line[:1] not in "#")
        return {series: float(value) for series, _, value in lines}

    def unready(self) -> str:
        """Why it is not ready; "" where it is."""
        try:
            status, said = self._get("/readyz")
        except OSError as error:
            return f"no answer: {error}"
        return "" if status == 200 else said.strip()

    def reading(self) -> Reading:
        """Raises :class:`OSError` where it is gone."""
        of_process = Path(f"/proc/{self.pid}")
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (of_process / "status").read_text(), re.M))
        if "VmRSS" not in status:
            raise ProcessLookupError(f"pid {self.pid} has ended")
        fds = len(list((of_process / "fd").iterdir()))
        return Reading(int(status["VmRSS"]) / 1024, int(status["VmHWM"]) / 1024, fds, int(status["Threads"]))

    def forget_peak(self) -> None:
        """``peak_rss_mib`` is of the time from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = _END_S) -> int:
        """Its exit status; it is killed where it takes longer than that, which raises :class:`CannotError`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise CannotError(f"the agent did not end within {seconds} s: {self.said()[-2000:]}") from None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=_ANSWER_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def total(metrics: Metrics, family: str, **labels: str) -> float:
    """Sum of a family's series that carry these labels."""
    return sum(
        value
        for series, value in metrics.items()
        if series.partition("{")[0] == family and all(f'{key}="{text}"' in series for key, text in labels.items())
    )


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Ours without what would configure the agent, and with the package that is tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TAILSPAN_"))}
    return kept | {"PYTHONPATH": str(Path(tailspan.__file__).parents[1])} | dict(given)
