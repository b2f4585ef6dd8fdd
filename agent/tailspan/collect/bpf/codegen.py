"""Writes ``wire/events.py`` from the compiled object's BTF: ``make events``, and only that."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tailspan.collect.bpf.btf import Btf

STRUCTS = (
    "runner",
    "thread_cycle",
    "cpu_slice",
    "thread_event",
    "thread_state",
    "socket_wait",
    "connection",
    "block_request",
    "incident",
    "gpu_call",
    "gpu_call_key",
    "socket_owner",
    "syscall_record",
    "syscall_key",
    "syscall_hist",
)
ENUMS = {  # name -> the prefix of its members, and whether they are bits
    "runner_flags": ("RUNNER_", True),
    "cycle_flags": ("CYCLE_", True),
    "slice_flags": ("SLICE_", True),
    "object_kind": ("OBJECT_", False),
    "socket_op": ("SOCKET_", False),
    "socket_flags": ("SOCKET_", True),
    "incident_kind": ("INCIDENT_", False),
    "gpu_call_kind": ("GPU_CALL_", False),
    "thread_event_kind": ("THREAD_", False),
    "thread_mode": ("MODE_", False),
    "record_class": ("CLASS_", False),
}

_HEADER = '''"""GENERATED from bpf/events.h through the compiled object's BTF by ``make events``; do not edit.

Checked against the object at start-up. Every ``*_mono_ns`` is CLOCK_MONOTONIC.
"""

from enum import IntEnum, IntFlag

import numpy as np
'''


def generate(btf: Btf) -> str:
    lines = [_HEADER]
    for name, (prefix, bits) in ENUMS.items():
        lines += ["", f"class {_camel(name)}({'IntFlag' if bits else 'IntEnum'}):"]
        lines += [f"    {member.removeprefix(prefix)} = {value}" for member, value in btf.enum(name).items()]
        lines.append("")
    for name in STRUCTS:
        lines += ["", f"{name.upper()} = {_dtype_source(btf.struct(name))}"]
    lines += ["", "LAYOUTS: dict[str, np.dtype[np.void]] = {"]
    lines += [f'    "{name}": {name.upper()},' for name in STRUCTS]
    lines += ["}", ""]
    return "\n".join(lines)


def _dtype_source(dtype: np.dtype[np.void]) -> str:
    assert dtype.fields is not None and dtype.names is not None
    lines = ["np.dtype(", "    {", f'        "names": {list(dtype.names)!r},', '        "formats": [']
    lines += [f"            {_format_source(name, dtype.fields[name][0])}," for name in dtype.names]
    lines += ["        ],", f'        "offsets": {[dtype.fields[name][1] for name in dtype.names]!r},']
    lines += [f'        "itemsize": {dtype.itemsize},', "    }", ")"]
    return "\n".join(lines)


def _format_source(name: str, dtype: np.dtype[np.void]) -> str:
    if dtype.names is not None:  # a nested record is named after its struct
        return name.upper()
    if dtype.subdtype is not None:
        element, shape = dtype.subdtype
        return f'("{element.str}", {shape!r})'
    return f'"{dtype.str}"'


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


if __name__ == "__main__":
    object_path, events_path = map(Path, sys.argv[1:])
    events_path.write_text(generate(Btf.of_object(object_path)))
