"""What an inference worker imports, so that tailspan can say why one of its requests was slow.

::

    import tailspan.client

    client = tailspan.client.connect(service="resnet", service_version="3")

    with client.request("POST /v1/infer", headers=headers, model="resnet50", peer=sock.getpeername()) as request:
        with request.span("preprocess"):
            ...
        request.queued(enqueue_mono_ns, start_mono_ns, tid=executor_tid)
        request.batch(batch_id, size=5, capacity=8)
        request.device(gpu_uuid, "CUDAExecutionProvider")

    with client.batch(batch_id, 5, 8, "resnet50"):      # on the executor thread
        session.run(...)

    client.watch_asyncio()                              # in a worker with an event loop

:mod:`tailspan.client.ort` adds the operators of slow runs of ONNX Runtime, for as long as it is told to.

Times are ``time.monotonic_ns()``, thread ids ``threading.get_native_id()``. The worker is never harmed: no
call here blocks or raises, whatever the agent does and whatever value it is given. What cannot be sent is
dropped and counted (:attr:`Client.dropped`), and the agent is told the count when it is there again. (A
keyword that does not exist is a TypeError, as anywhere.) A fork gets a connection of its own. Standard library
and msgpack only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tailspan.client import aio, pauses, runtime
from tailspan.client.connection import Connection
from tailspan.client.request import ActiveBatch, ActiveRequest, ActiveSpan, text
from tailspan.client.trace import Headers
from tailspan.wire.spans import MAX_RESOURCE, Hello

__all__ = ["DEFAULT_PATH", "ActiveBatch", "ActiveRequest", "ActiveSpan", "Client", "connect"]

DEFAULT_PATH = "/run/tailspan/worker.sock"


def connect(
    service: str,
    service_version: str = "",
    path: str | os.PathLike[str] | None = None,
    resource: Mapping[str, str] | None = None,
) -> Client:
    """A client for this process; make one and keep it. The agent need not be there yet, or ever.

    ``path``: the agent's socket; else ``TAILSPAN_SOCKET``, else :data:`DEFAULT_PATH`. ``resource``:
    OpenTelemetry resource attributes for the spans that the agent exports on the worker's behalf, at most 64.
    """
    attributes = {text(key): text(value) for key, value in list((resource or {}).items())[:MAX_RESOURCE]}
    hello = Hello(os.getpid(), text(service), text(service_version), attributes, runtime.locks())
    connection = Connection(os.fspath(path or os.environ.get("TAILSPAN_SOCKET") or DEFAULT_PATH), hello)
    pauses.watch(connection)
    connection.ready()  # now, so that the agent follows the worker's threads before the first request
    return Client(connection)


class Client:
    """Safe to use from any thread. See the module's text for an example."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @property
    def dropped(self) -> int:
        """Messages, and spans or facts that could not be part of one, lost by this process since it began."""
        return self.connection.dropped

    def request(
        self,
        name: str,
        *,
        traceparent: str | bytes | None = None,
        headers: Headers | None = None,
        request_id: str = "",
        model: str = "",
        model_version: str = "",
        peer: tuple[Any, ...] | None = None,
    ) -> ActiveRequest:
        """One request, from when its block begins to when it ends. Requests of one ``name`` are compared.

        ``headers``: those that it came with, a mapping or pairs, names in any case; its trace goes on by W3C's
        ``traceparent``, else by B3's (``b3``, or ``X-B3-TraceId`` and the like). Or ``traceparent`` alone.
        ``peer``: the other end of the connection that it came on, ``(host, port)`` or as ``getpeername()`` has it.
        """
        return ActiveRequest(self.connection, (name, traceparent, headers, request_id, model, model_version, peer))

    def batch(self, batch_id: int, size: int, capacity: int, name: str = "") -> ActiveBatch:
        """One execution for many requests, on this thread. ``batch_id``: unique within the process, not 0."""
        return ActiveBatch(self.connection, (batch_id, size, capacity, name))

    def watch_asyncio(self, floor_ns: int = aio.FLOOR_NS) -> None:
        """Tell the agent of every asyncio callback longer than ``floor_ns``. Call it once; see :mod:`.aio`."""
        try:
            aio.watch(self.connection, floor_ns)
        except Exception:
            self.connection.drop()

    def close(self) -> None:
        """For tests and orderly ends; a process may as well just exit."""
        aio.unwatch(self.connection)
        pauses.unwatch(self.connection)
        self.connection.close()
