"""One :class:`Evidence` as bytes and back. Pure; safe on bytes from anywhere.

::

    u32 head length | head (msgpack) | the tables' rows, one table after the other, as raw bytes

The head says what each table's columns were when it was written (path, numpy type, offset), so that an older
file opens: columns are matched by name, those that did not exist yet read 0, those that are gone are ignored.
Nothing is evaluated or unpickled, and no size in the file is believed before it is checked.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

import msgpack
import numpy as np

from tailspan.attribute.causes import N_CAUSES
from tailspan.errors import SegmentError
from tailspan.timeline.evidence import TABLES, Evidence, LikeRow, Meta, Table

#: The most a payload may come to when decompressed, on writing and on reading: 1.6 million thread cycles.
MAX_RAW = 256 << 20
MAX_HEAD = 8 << 20
MAX_ROW = 4096

_LENGTH = struct.Struct("<I")
_COLUMN_TYPE = re.compile(r"[<|](?:[iu][1248]|f[48]|[SV]\d{1,3})")
#: Columns that index the evidence's strings.
_STRING_COLUMNS = {
    "requests": ("name", "model", "version", "service", "status", "device", "provider"),
    "spans": ("name",),
    "activations": ("name",),
}

Column = tuple[str, str, int]  #: path ("runner.tid" in a nested struct), numpy type string, byte offset


def encode(evidence: Evidence) -> Iterator[bytes]:
    """The payload in pieces, so that no second copy of it is held."""
    tables: dict[str, Table] = {name: getattr(evidence, name) for name in TABLES}
    head = msgpack.packb(
        {
            "tables": [
                [name, len(table), table.dtype.itemsize, list(columns(table.dtype))]
                for name, table in tables.items()
            ],
            "strings": evidence.strings,
            "likes": [
                [like.n, like.p50_ns, like.p95_ns, like.threshold_ns, like.parts_ns] for like in evidence.likes
            ],
            "meta": asdict(evidence.meta),
        }
    )
    size = len(head) + sum(table.nbytes for table in tables.values())
    if len(head) > MAX_HEAD or size > MAX_RAW:
        raise SegmentError(f"evidence of {size} bytes (head {len(head)}) is too large to store")
    yield _LENGTH.pack(len(head))
    yield head
    for table in tables.values():
        yield table.tobytes()


def decode(raw: bytes) -> Evidence:
    """Raises :class:`SegmentError` and nothing else, whatever the bytes."""
    try:
        return _decode(raw)
    except SegmentError:
        raise
    except Exception as error:  # msgpack and numpy raise a dozen types on bytes that are not ours
        raise SegmentError(f"evidence does not decode: {error!r:.200}") from None


def columns(dtype: np.dtype[Any], path: str = "", offset: int = 0) -> Iterator[Column]:
    """The scalar columns of a structured dtype; nested structs are flattened into dotted paths."""
    entries: Mapping[str, Any] = dtype.fields or {}
    for name, (field, start, *_) in entries.items():
        if field.names:
            yield from columns(field, f"{path}{name}.", offset + start)
        else:
            yield f"{path}{name}", field.str, offset + start


def _decode(raw: bytes) -> Evidence:
    (head_length,) = _LENGTH.unpack_from(raw)
    _require(head_length <= min(MAX_HEAD, len(raw) - _LENGTH.size), "its head is cut off")
    offset = _LENGTH.size + head_length
    head = msgpack.unpackb(raw[_LENGTH.size : offset], raw=False)
    tables: dict[str, Table] = {}
    grown = 0  # bytes of the tables in memory, whose rows may be longer than they were written
    for name, rows, itemsize, stored_columns in head["tables"]:
        _require(
            _is_count(rows) and _is_count(itemsize) and 0 < itemsize <= MAX_ROW,
            f"table {name!r:.40}: its size",
        )
        end = offset + rows * itemsize
        _require(end <= len(raw), f"table {name!r:.40} is cut off")
        if name in TABLES:
            grown += rows * TABLES[name].itemsize
            _require(grown <= MAX_RAW, "its tables are larger than any that are stored")
            tables[name] = _table(TABLES[name], rows, itemsize, stored_columns, raw[offset:end])
        offset = end
    evidence = Evidence(
        **tables,
        strings=head["strings"],
        likes=[_like(item) for item in head["likes"]],
        meta=_meta(head["meta"]),
    )
    _check_references(evidence)
    return evidence


def _table(dtype: np.dtype[Any], rows: int, itemsize: int, stored_columns: list[Any], data: bytes) -> Table:
    stored = np.frombuffer(data, _stored_dtype(itemsize, stored_columns), rows)
    table: Table = np.zeros(rows, dtype)
    for path, type_string, _ in columns(dtype):
        if path in (stored.dtype.names or ()):
            kinds = {stored.dtype[path].kind, np.dtype(type_string).kind}
            _require(len(kinds) == 1 or kinds == {"i", "u"}, f"column {path} has changed its kind")
            _column(table, path)[...] = stored[path]
    return table


def _stored_dtype(itemsize: int, stored_columns: list[Any]) -> np.dtype[Any]:
    names, formats, offsets = [], [], []
    for path, type_string, start in stored_columns:
        _require(isinstance(path, str) and len(path) <= 128, "a column's name")
        _require(
            isinstance(type_string, str) and _COLUMN_TYPE.fullmatch(type_string) is not None,
            "a column's type",
        )
        _require(_is_count(start) and start < itemsize, "a column's offset")
        names.append(path)
        formats.append(type_string)
        offsets.append(start)
    # numpy refuses duplicate names and columns that reach beyond itemsize.
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


def _column(table: Table, path: str) -> Any:
    view: Any = table
    for name in path.split("."):
        view = view[name]
    return view


def _like(item: Any) -> LikeRow:
    n, p50_ns, p95_ns, threshold_ns, parts_ns = item
    _require(all(_is_count(value) for value in (n, p50_ns, p95_ns, threshold_ns, *parts_ns)), "a baseline")
    # Causes are appended at the end only, so an older row is a prefix.
    return LikeRow(n, p50_ns, p95_ns, threshold_ns, (parts_ns + [0] * N_CAUSES)[:N_CAUSES])


def _meta(body: dict[str, Any]) -> Meta:
    meta = Meta()
    for field in fields(Meta):
        value = body.get(field.name, getattr(meta, field.name))
        _require(type(value) is type(getattr(meta, field.name)), f"meta {field.name}")
        if field.name == "gpus":
            _require(all(isinstance(gpu, dict) and _is_text_map(gpu) for gpu in value), "meta gpus")
        elif field.name == "gpu_majors":
            _require(all(map(_is_count, value)), "meta gpu_majors")
        elif field.name == "probes_off":
            _require(_is_ranges(value), "meta probes_off")
        elif field.name in ("runtime_locks", "shed"):
            _require(all(_is_ranges(item) for item in value.values()), f"meta {field.name}")
        elif isinstance(value, dict):
            maps = list(value.values()) if field.name in ("resources", "identities") else [value]
            _require(all(_is_text_map(item) for item in maps), f"meta {field.name}")
        setattr(meta, field.name, value)
    return meta


def _check_references(evidence: Evidence) -> None:
    """What indexes something must find it: attribution relies on that."""
    _require(
        isinstance(evidence.strings, list) and all(isinstance(text, str) for text in evidence.strings),
        "strings",
    )
    for name, column_names in _STRING_COLUMNS.items():
        for column in column_names:
            values = getattr(evidence, name)[column]
            _require(
                not len(values) or int(values.max()) < len(evidence.strings),
                f"{name}.{column} names no string",
            )
    for name in ("gpu_samples", "gpu_processes", "gpu_events"):
        gpus = getattr(evidence, name)["gpu"]
        _require(not len(gpus) or int(gpus.max()) < len(evidence.meta.gpus), f"{name}.gpu names no GPU")
    owners, n_requests = evidence.spans["request"], len(evidence.requests)
    _require(
        not len(owners) or (owners.min() >= 0 and owners.max() < n_requests), "spans.request names no request"
    )
    _require(len(evidence.likes) in (0, n_requests), "baselines and requests differ in number")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_ranges(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 and all(_is_count(end) for end in item) for item in value
    )


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _require(true: Any, what: str) -> None:
    if not true:
        raise SegmentError(f"evidence is malformed: {what}")
