"""The load: a few connections, each of which asks, waits for the answer, thinks, and asks again."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.netns import End

CONNECTIONS = 3
THINK_S = (0.04, 0.08)
TIMEOUT_S = 20.0

_CLONE_NEWNET = 0x40000000


@dataclass(slots=True)
class Asked:
    """One request as its caller saw it."""

    request_id: str
    stage: str
    sent_mono_ns: int
    answered_mono_ns: int
    status: int  #: 0: no answer
    batch_id: int
    run_delay_ns: int  #: schedstat of its handler thread meanwhile; -1: not known whose

    @property
    def ms(self) -> float:
        return (self.answered_mono_ns - self.sent_mono_ns) / 1e6


class Load:
    """Idle until :meth:`ask`. ``asked`` grows as answers come."""

    def __init__(self, end: End, port: int, worker_pid: int) -> None:
        self.asked: list[Asked] = []
        self._end = end
        self._port = port
        self._tasks = Path(f"/proc/{worker_pid}/task")
        self._stage: tuple[str, bool, int, tuple[float, float]] | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def ask(
        self,
        stage: str,
        *,
        fresh: bool = False,
        connections: int = CONNECTIONS,
        think_s: tuple[float, float] = THINK_S,
    ) -> None:
        """From now on for this stage, on so many connections. ``fresh``: on a new one each time."""
        with self._changed:
            self._stage = stage, fresh, connections, think_s
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def connection(self) -> Connection:
        """One more, for a fault that asks for something itself; in a thread of its own."""
        _enter(self._end.namespace)
        return Connection(self._port, self._tasks)

    def _run(self, number: int) -> None:
        connection = self.connection()
        think = random.Random(number)
        asked = 0
        with contextlib.closing(connection):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or (self._stage and number < self._stage[2]))
                    if self._closed or self._stage is None:
                        return
                    stage, fresh, _, think_s = self._stage
                asked += 1
                self.asked.append(connection.ask(stage, f"{number}-{asked}", asked, fresh=fresh))
                time.sleep(think.uniform(*think_s))


class Connection:
    """For one thread."""

    def __init__(self, port: int, tasks: Path) -> None:
        self._port = port
        self._tasks = tasks
        self._http: http.client.HTTPConnection | None = None
        self._schedstat: Path | None = None  # of the thread that serves this connection

    def ask(self, stage: str, request_id: str, seed: int, *, fresh: bool = False) -> Asked:
        if fresh:
            self.close()
        delayed = self._run_delay()
        sent = time.monotonic_ns()
        status, batch = self._post(stage, request_id, seed)
        answered = time.monotonic_ns()
        delay = self._run_delay() - delayed if delayed >= 0 and status else -1
        return Asked(request_id, stage, sent, answered, status, batch, delay)

    def _run_delay(self) -> int:
        return int(self._schedstat.read_text().split()[1]) if self._schedstat else -1

    def close(self) -> None:
        """The next request connects anew."""
        if self._http:
            self._http.close()
        self._http, self._schedstat = None, None

    def _post(self, stage: str, request_id: str, seed: int) -> tuple[int, int]:
        if self._http is None:
            self._http = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json", "x-request-id": request_id}
        try:
            self._http.request("POST", f"/v1/infer/{stage}", json.dumps({"seed": seed}), headers)
            response = self._http.getresponse()
            body = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            return 0, 0
        self._schedstat = self._tasks / str(body["tid"]) / "schedstat" if "tid" in body else None
        return response.status, body.get("batch", 0)


def _enter(namespace: str) -> None:
    """A network namespace, for the sockets that the calling thread makes from now on."""
    with open(f"/run/netns/{namespace}") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
