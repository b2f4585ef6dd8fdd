"""Changes that keep an input's shape: a value of a tree, a field of a protobuf message, a number of a table."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz.target import Change

#: Where integers go wrong.
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4096, 65535, 65536)
EDGES = tuple((1 << bits) + off for bits in (15, 16, 22, 31, 32, 40, 53, 60, 61, 62, 63, 64) for off in (-1, 0, 1))
TEXTS = ("", "a", "\0", "\n", "%s", "\ud7ff", "\U0001f600", "é", "..", "/", "x" * 300)
_MAX_NODES = 4096


def number(value: int, rng: random.Random) -> int:
    return rng.choice(
        (rng.choice(NUMBERS), rng.choice(EDGES), -rng.choice(EDGES), value + rng.randint(-2, 2), -value)
    )


def msgpack_map(packed: bytes, rng: random.Random, change: Change) -> bytes:
    """One value of what is packed is changed; bytes where it is not msgpack, or is not any more."""
    try:
        tree = msgpack.unpackb(packed, raw=False, strict_map_key=False)
        made: bytes = msgpack.packb(tree_value(tree, rng, change))
    except Exception:
        return change(packed, len(packed) + 64)
    return made


def tree_value(tree: Any, rng: random.Random, change: Change) -> Any:
    """``tree`` of maps, lists and scalars with one of its nodes changed."""
    places = list(_places(tree))
    if not places:
        return _changed(tree, rng, change)
    holder, key = rng.choice(places)
    act = rng.choice(("change", "change", "change", "drop", "copy", "double"))
    if act == "change":
        holder[key] = _changed(holder[key], rng, change)
    elif act == "drop":
        del holder[key]
    elif act == "copy":
        other, of = rng.choice(places)
        # not of what holds it: a tree that holds itself has no bytes
        holder[key] = other[of] if not isinstance(other[of], dict | list) else rng.choice(NUMBERS)
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in it."""
    found: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack and len(found) < _MAX_NODES:
        node = stack.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            found.append((node, key))
            if isinstance(value, dict | list):
                stack.append(value)
    return found


def _changed(value: Any, rng: random.Random, change: Change) -> Any:
    if rng.random() < 0.1:
        return rng.choice((None, True, 0, -1, 1.5, float("nan"), float("inf"), "", b"", [], {}, [[]], {"a": [0]}))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        made = number(value, rng)
        return made if -(1 << 63) <= made < 1 << 64 else rng.choice(NUMBERS)
    if isinstance(value, float):
        return rng.choice((0.0, -value, value * 2, 1e308, float("nan"), float("inf"), float(rng.choice(EDGES))))
    if isinstance(value, str):
        if rng.random() < 0.3:
            return rng.choice(TEXTS)
        return change(value.encode(errors="replace"), len(value) + 32).decode(errors="replace")
    if isinstance(value, bytes):
        return change(value, len(value) + 16)
    if isinstance(value, list):
        return value * 2 if rng.random() < 0.5 else value[: len(value) // 2]
    return rng.choice((None, 0, "", [], {}))


def protobuf(message: Message, rng: random.Random, change: Change) -> None:
    """One field of it, or of a message in it, is changed in place."""
    messages = [message]
    for one in messages:
        for field, value in one.ListFields():
            if field.message_type is not None and len(messages) < _MAX_NODES:
                messages += list(value) if _is_list(field) else [value]
    one = rng.choice(messages)
    fields = [field for field, _ in one.ListFields()] if rng.random() < 0.7 else list(one.DESCRIPTOR.fields)
    if fields:
        _change_field(one, rng.choice(fields), rng, change)


def _is_list(field: Any) -> bool:
    repeated = getattr(field, "is_repeated", None)  # older releases know the label alone
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


def _change_field(one: Message, field: Any, rng: random.Random, change: Change) -> None:
    if field.message_type is not None:
        inner = getattr(one, field.name)
        if not _is_list(field):
            inner.SetInParent() if rng.random() < 0.5 else one.ClearField(field.name)
        elif len(inner) and rng.random() < 0.7:
            rng.choice((lambda: inner.append(rng.choice(inner)), lambda: inner.pop(rng.randrange(len(inner)))))()
        else:
            inner.add()
        return
    if _is_list(field):
        one.ClearField(field.name)
        return
    value = getattr(one, field.name)
    is_number = isinstance(value, int)
    made = number(int(value), rng) if is_number else _changed(value, rng, change)
    try:
        setattr(one, field.name, made)
    except (TypeError, ValueError, OverflowError):  # beyond the field's type
        one.ClearField(field.name)


def word(data: bytes, rng: random.Random, start: int = 0, size: int = 4, small: int = 64) -> bytes:
    """One little-endian integer of a table of them: a small one, as indices are, or where integers go wrong."""
    places = range(start, len(data) - size + 1, size)
    if not places:
        return data
    at = rng.choice(places)
    (value,) = struct.unpack_from({4: "<I", 8: "<Q", 2: "<H"}[size], data, at)
    made = rng.choice((rng.randrange(small), rng.choice(NUMBERS), number(value, rng)))
    return data[:at] + (made % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]
