"""Attributes that a worker may set on the spans of a request, wherever the agent gets them from."""

from __future__ import annotations

BATCH_ID = "tailspan.batch.id"
BATCH_SIZE = "tailspan.batch.size"
BATCH_CAPACITY = "tailspan.batch.capacity"
MODEL_NAME = "tailspan.model.name"
MODEL_VERSION = "tailspan.model.version"
REQUEST_ID = "tailspan.request.id"
#: The kernel's number of the thread that the span is the work of, as the worker's own pid namespace has it.
THREAD_TID = "tailspan.thread.tid"

#: Where a request's own span says which connection it came on; the first that is there. Behind a proxy
#: ``client.port`` may be that of the proxy's client, so it is asked last.
PEER_PORTS = ("network.peer.port", "net.peer.port", "client.port")
