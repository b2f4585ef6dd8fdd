"""The worker's messages: msgpack maps over a SOCK_SEQPACKET unix socket, one map per packet.

Every map has ``v`` (:data:`VERSION`) and ``k`` (its kind). Times are CLOCK_MONOTONIC nanoseconds, the clock
that BPF stamps, so no conversion stands between a span and a kernel record. Thread ids are the OS's
(``gettid``), as the worker's own pid namespace numbers them; the agent translates.

=============  ====================================================================================
``hello``      first packet of a connection: ``pid``, ``service``, ``service_version``, ``resource``,
               and, optional, where the interpreter's own locks lie (``runtime_locks``) and how many messages
               the process has ``sent`` on its connections before
``request``    one finished request with its spans and the batch that carried it; optional: the port of its
               connection's other end (``pp``), and the GPU it ran on and what ran it (``d``)
``activation`` a stretch of time in which one thread worked for one batch (``batch``) or one event-loop
               step worked for one request (``step``)
``pause``      a stretch of time in which one thread did nothing but its runtime's own work (``gc``)
``drops``      how many messages this process has dropped since it started (cumulative)
=============  ====================================================================================

Decoding validates everything and raises :class:`~tailspan.errors.MessageError`; the agent counts and drops. An
optional key may be absent: the client may be older than the agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgpack

from tailspan.errors import MessageError

VERSION = 1
#: A packet longer than this is refused: a request with 64 spans takes under 4 KiB.
MAX_PACKET = 32 * 1024
MAX_SPANS = 256
MAX_TEXT = 256
MAX_RESOURCE = 64
MAX_RUNTIME_LOCKS = 16


class SpanKind(IntEnum):
    """What a span says about the thread it names."""

    SYNC = 0  #: the thread itself did this work, from start to end
    QUEUED = 1  #: the request waited for the thread to take it up (enqueue to dequeue)
    AWAIT = 2  #: the request was suspended on the event loop that runs on the thread


class ActivationKind(IntEnum):
    BATCH = 0  #: the thread executed a batch; ``owner`` is the batch id
    STEP = 1  #: the event loop ran one callback; ``owner`` is the request's span id, 0 when it served none


class PauseKind(IntEnum):
    GC = 0  #: the garbage collector ran on the thread


@dataclass(slots=True)
class Span:
    name: str
    kind: SpanKind
    tid: int  #: 0 when unknown
    start_mono_ns: int
    end_mono_ns: int


@dataclass(slots=True)
class Hello:
    pid: int
    service: str
    service_version: str = ""
    resource: dict[str, str] = field(default_factory=dict)
    #: [first, past) of the addresses at which its interpreter's own locks lie, such as CPython's GIL
    runtime_locks: list[list[int]] = field(default_factory=list)
    #: messages that the process has sent on its connections before this one: what of them no agent took is lost
    sent: int = 0


@dataclass(slots=True)
class Request:
    trace_id: bytes  #: 16 bytes
    span_id: bytes  #: 8 bytes
    parent_id: bytes  #: 8 bytes; all zero for a root
    request_id: str
    name: str  #: the route, e.g. ``POST /v1/infer``: low cardinality, requests of one name are compared
    tid: int
    start_mono_ns: int
    end_mono_ns: int
    model: str = ""
    model_version: str = ""
    status: str = "ok"
    sampled: bool = True
    asynchronous: bool = False  #: the request ran on an event loop: its own time is the loop's steps for it
    batch_id: int = 0
    batch_size: int = 0
    batch_capacity: int = 0
    spans: list[Span] = field(default_factory=list)
    peer_port: int = 0  #: of the other end of the connection that it came on; 0 when unknown
    device: str = ""  #: uuid of the GPU that it ran on, as NVML has it: ``GPU-…`` or ``MIG-…``
    provider: str = ""  #: what ran it, in the runtime's words: ``CUDAExecutionProvider``
    #: spans of its trace that do not fit, as the agent found; the worker does not send it
    broken: int = 0


@dataclass(slots=True)
class Activation:
    kind: ActivationKind
    tid: int
    start_mono_ns: int
    end_mono_ns: int
    owner: int  #: batch id, or the span id as a big-endian integer
    name: str = ""
    size: int = 0
    capacity: int = 0


@dataclass(slots=True)
class Pause:
    kind: PauseKind
    tid: int
    start_mono_ns: int
    end_mono_ns: int
    generation: int  #: the oldest that was collected


@dataclass(slots=True)
class Drops:
    count: int  #: cumulative for the process


Message = Hello | Request | Activation | Pause | Drops

#: Quicker to ask than the enumeration itself, and a request has many spans.
_SPAN_KINDS = {kind.value: kind for kind in SpanKind}


def encode(message: Message) -> bytes:
    """Pack one message. Cheap enough for a request's own thread: about 3 µs for a request of five spans."""
    body: dict[str, Any]
    if isinstance(message, Request):
        body = {
            "v": VERSION,
            "k": "request",
            "tr": message.trace_id,
            "sp": message.span_id,
            "pa": message.parent_id,
            "id": message.request_id,
            "n": message.name,
            "t": message.tid,
            "s": message.start_mono_ns,
            "e": message.end_mono_ns,
            "m": message.model,
            "mv": message.model_version,
            "st": message.status,
            "sa": message.sampled,
            "as": message.asynchronous,
            "b": [message.batch_id, message.batch_size, message.batch_capacity],
            "x": [[s.name, int(s.kind), s.tid, s.start_mono_ns, s.end_mono_ns] for s in message.spans],
            "pp": message.peer_port,
            "d": [message.device, message.provider],
        }
    elif isinstance(message, Activation):
        body = {
            "v": VERSION,
            "k": "activation",
            "a": int(message.kind),
            "t": message.tid,
            "s": message.start_mono_ns,
            "e": message.end_mono_ns,
            "o": message.owner,
            "n": message.name,
            "b": [message.size, message.capacity],
        }
    elif isinstance(message, Pause):
        body = {
            "v": VERSION,
            "k": "pause",
            "p": int(message.kind),
            "t": message.tid,
            "s": message.start_mono_ns,
            "e": message.end_mono_ns,
            "g": message.generation,
        }
    elif isinstance(message, Hello):
        body = {
            "v": VERSION,
            "k": "hello",
            "pid": message.pid,
            "service": message.service,
            "service_version": message.service_version,
            "resource": message.resource,
            "runtime_locks": message.runtime_locks,
            "sent": message.sent,
        }
    else:
        body = {"v": VERSION, "k": "drops", "c": message.count}
    packed: bytes = msgpack.packb(body)
    return packed


def decode(packet: bytes) -> Message:
    """Unpack and validate one packet.

    Raises :class:`MessageError` with reason ``oversized``, ``malformed``, ``version``, ``kind``, ``field`` or
    ``time``; nothing else, whatever the bytes.
    """
    if len(packet) > MAX_PACKET:
        raise MessageError("oversized", f"{len(packet)} bytes, at most {MAX_PACKET}")
    try:
        body = msgpack.unpackb(packet, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack raises a dozen types, ValueError and its own among them
        raise MessageError("malformed", str(error) or type(error).__name__) from None
    if not isinstance(body, dict):
        raise MessageError("malformed", f"a {type(body).__name__}, not a map")
    if body.get("v") != VERSION:
        raise MessageError("version", f"{_shown(body.get('v'))}, this agent speaks {VERSION}")
    kind = body.get("k")
    if kind == "request":
        return _request(body)
    if kind == "activation":
        return _activation(body)
    if kind == "pause":
        return _pause(body)
    if kind == "hello":
        return _hello(body)
    if kind == "drops":
        return Drops(_uint(body, "c", 63))
    raise MessageError("kind", _shown(kind))


def _request(body: dict[str, Any]) -> Request:
    start, end = _window(body)
    batch = _list(body, "b", 3)
    device, provider = _list(body, "d", 2) if "d" in body else ("", "")
    if not isinstance(device, str) or not isinstance(provider, str):
        raise MessageError("field", "d: a device and a provider are strings")
    spans = body.get("x")
    if not isinstance(spans, list) or len(spans) > MAX_SPANS:
        raise MessageError("field", f"x: a list of at most {MAX_SPANS} spans")
    return Request(
        trace_id=_id(body, "tr", 16),
        span_id=_id(body, "sp", 8),
        parent_id=_id(body, "pa", 8),
        request_id=_text(body, "id"),
        name=_text(body, "n"),
        tid=_uint(body, "t", 32),
        start_mono_ns=start,
        end_mono_ns=end,
        model=_text(body, "m"),
        model_version=_text(body, "mv"),
        status=_text(body, "st"),
        sampled=bool(body.get("sa")),
        asynchronous=bool(body.get("as")),
        batch_id=_as_uint(batch[0], "b", 64),
        batch_size=_as_uint(batch[1], "b", 32),
        batch_capacity=_as_uint(batch[2], "b", 32),
        spans=[_span(item) for item in spans],
        peer_port=_as_uint(body.get("pp", 0), "pp", 16),
        device=device[:MAX_TEXT],
        provider=provider[:MAX_TEXT],
    )


def _span(item: Any) -> Span:
    if not isinstance(item, list) or len(item) != 5 or not isinstance(item[0], str):
        raise MessageError("field", "x: a span is [name, kind, tid, start, end]")
    name, kind, tid, start, end = item
    start, end = _as_uint(start, "x", 63), _as_uint(end, "x", 63)
    if end < start:
        raise MessageError("time", f"span {name[:32]!r} ends before it starts")
    known = _SPAN_KINDS.get(_as_uint(kind, "x", 32))
    if known is None:
        raise MessageError("field", f"x: no span kind {kind}")
    return Span(name[:MAX_TEXT], known, _as_uint(tid, "x", 32), start, end)


def _activation(body: dict[str, Any]) -> Activation:
    start, end = _window(body)
    size, capacity = _list(body, "b", 2)
    number = _uint(body, "a", 32)
    try:
        kind = ActivationKind(number)
    except ValueError:
        raise MessageError("field", f"a: no activation kind {number}") from None
    return Activation(
        kind,
        _uint(body, "t", 32),
        start,
        end,
        _uint(body, "o", 64),
        _text(body, "n"),
        _as_uint(size, "b", 32),
        _as_uint(capacity, "b", 32),
    )


def _pause(body: dict[str, Any]) -> Pause:
    start, end = _window(body)
    number = _uint(body, "p", 32)
    try:
        kind = PauseKind(number)
    except ValueError:
        raise MessageError("field", f"p: no pause kind {number}") from None
    return Pause(kind, _uint(body, "t", 32), start, end, _uint(body, "g", 32))


def _hello(body: dict[str, Any]) -> Hello:
    resource = body.get("resource")
    if not isinstance(resource, dict) or len(resource) > MAX_RESOURCE:
        raise MessageError("field", f"resource: a map of at most {MAX_RESOURCE} strings")
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in resource.items()):
        raise MessageError("field", "resource: strings only")
    return Hello(
        _uint(body, "pid", 32),
        _text(body, "service"),
        _text(body, "service_version"),
        {k[:MAX_TEXT]: v[:MAX_TEXT] for k, v in resource.items()},
        _ranges(body, "runtime_locks", MAX_RUNTIME_LOCKS),
        _as_uint(body.get("sent", 0), "sent", 63),
    )


def _ranges(body: dict[str, Any], key: str, limit: int) -> list[list[int]]:
    value = body.get(key, [])
    if not isinstance(value, list) or len(value) > limit:
        raise MessageError("field", f"{key}: a list of at most {limit} ranges")
    for item in value:
        if not isinstance(item, list) or len(item) != 2:
            raise MessageError("field", f"{key}: a range is [first, past]")
        if _as_uint(item[0], key, 63) >= _as_uint(item[1], key, 63):
            raise MessageError("field", f"{key}: a range ends before it starts")
    return value


def _window(body: dict[str, Any]) -> tuple[int, int]:
    start, end = _uint(body, "s", 63), _uint(body, "e", 63)
    if end < start:
        raise MessageError("time", f"ends {start - end} ns before it starts")
    return start, end


def _uint(body: dict[str, Any], key: str, bits: int) -> int:
    return _as_uint(body.get(key), key, bits)


def _as_uint(value: Any, key: str, bits: int) -> int:
    """``bits`` is what the table column holds that the value goes to: 63 where it is signed."""
    # bool is an int to Python and not to us
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise MessageError("field", f"{key}: {_shown(value)} is no unsigned integer of {bits} bits")
    return value


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise MessageError("field", f"{key}: {_shown(value)} is no string")
    return value[:MAX_TEXT]


def _id(body: dict[str, Any], key: str, length: int) -> bytes:
    value = body.get(key)
    if not isinstance(value, bytes) or len(value) != length:
        raise MessageError("field", f"{key}: {length} bytes")
    return value


def _list(body: dict[str, Any], key: str, length: int) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list) or len(value) != length:
        raise MessageError("field", f"{key}: a list of {length}")
    return value


def _shown(value: Any) -> str:
    """For the detail of an error: no repr of a container, which can be nested deeper than Python recurses."""
    if value is None or isinstance(value, int | float | str | bytes):
        return repr(value)[:64]
    return f"a {type(value).__name__}"
