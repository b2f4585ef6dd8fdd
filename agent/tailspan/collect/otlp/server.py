"""The OTLP receiver as the daemon has it: servers on threads of their own, read on the daemon's timer."""

from __future__ import annotations

import time
from collections import Counter

from tailspan.collect.otlp.assemble import Assembler
from tailspan.collect.otlp.intake import Forward, Intake, Told
from tailspan.collect.otlp.senders import Kernel, Senders
from tailspan.collect.otlp.spans import SERVICE_NAME, SERVICE_VERSION, Resource
from tailspan.timeline.inbox import Received
from tailspan.tls import ServerTls
from tailspan.wire.otlp import Signal
from tailspan.wire.spans import Hello

#: Of an SDK that was told no name; the semantic conventions want this one.
UNKNOWN_SERVICE = "unknown_service"


class OtlpReceiver:
    """``grpc`` and ``http`` are addresses, ``host:port``; "" for none. Port 0 takes a free one, then named by
    ``grpc_port`` or ``http_port``. Raises :class:`CannotError` for an address that cannot be had.

    ``forward`` is called on the servers' threads with every message that is accepted, and must neither block nor
    raise. Where ``allow_uids`` is not empty, senders of other users, and those that nobody knows, are refused.
    ``tls`` is for addresses beyond loopback.
    """

    def __init__(
        self,
        grpc: str,
        http: str,
        forward: Forward,
        kernel: Kernel | None = None,
        allow_uids: tuple[int, ...] = (),
        tls: ServerTls | None = None,
    ) -> None:
        self._intake = Intake(forward, Senders(kernel), allow_uids)
        self._assembler = Assembler()
        self._resources: dict[int, Resource] = {}  # what was said of each sender
        self._met: set[int] = set()
        self._ignored: frozenset[int] = frozenset()
        self.grpc_port = self.http_port = 0
        self._grpc = self._http = None
        try:
            if http:
                from tailspan.collect.otlp.http_server import HttpServer

                self._http = HttpServer(http, self._intake, tls)
                self.http_port = self._http.port
            if grpc:
                from tailspan.collect.otlp.grpc_server import GrpcServer

                self._grpc = GrpcServer(grpc, self._intake, tls)
                self.grpc_port = self._grpc.port
        except BaseException:
            self.close()
            raise

    @property
    def refused(self) -> Counter[str]:
        """Messages that were refused, or could not be joined, by reason; a copy."""
        return self._intake.refused

    @property
    def received(self) -> Counter[Signal]:
        """Spans, data points and log records that were accepted; a copy."""
        return self._intake.received

    @property
    def broken(self) -> Counter[str]:
        """Spans whose trace does not fit together, by reason."""
        return self._assembler.broken

    def allow(self, uids: tuple[int, ...]) -> None:
        """Whose messages are taken from now on; all, where it is empty."""
        self._intake.allow(uids)

    def read(self) -> list[Received]:
        """What the senders told since the last call: requests, and a hello where a sender's resource is news."""
        received: list[Received] = []
        for told in self._intake.drain():
            if told.tgid not in self._ignored:
                received += self._greet(told)
                self._assembler.add(told.tgid, told.spans, told.came_mono_ns, told.unix_offset_ns)
        return received + self._assembler.take(time.monotonic_ns())

    def connected(self) -> list[int]:
        """Processes that have sent spans for the first time since the last call: they are to be followed."""
        met, self._met = sorted(self._met), set()
        return met

    def ignore(self, pids: set[int]) -> None:
        """These tell the agent of their requests themselves: their spans are forwarded only."""
        for pid in pids - self._ignored:
            self._forget(pid)
        self._ignored = frozenset(pids)

    def take_gone(self, alive: set[int]) -> set[int]:
        """Senders that are not among those ``alive``; they are forgotten."""
        gone = self._resources.keys() - alive
        for pid in gone:
            self._forget(pid)
        return gone

    def close(self) -> None:
        for server in (self._http, self._grpc):
            if server:
                server.close()
        self._intake.close()

    def _greet(self, told: Told) -> list[Received]:
        known = self._resources.get(told.tgid)
        if known == told.resource:
            return []
        if known is None:
            self._met.add(told.tgid)
        self._resources[told.tgid] = told.resource
        attributes = dict(told.resource.attributes)
        service = attributes.get(SERVICE_NAME) or UNKNOWN_SERVICE
        hello = Hello(told.tgid, service, attributes.get(SERVICE_VERSION, ""), attributes)
        return [Received(told.tgid, hello, told.came_mono_ns)]

    def _forget(self, pid: int) -> None:
        self._resources.pop(pid, None)
        self._assembler.forget(pid)
