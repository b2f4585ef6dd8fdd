"""What must hold before anything is loaded, and what the host says about itself."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tailspan.collect.bpf import btf
from tailspan.errors import CannotError, ProbeError
from tailspan.wire.events import LAYOUTS

_CAP_SYS_PTRACE, _CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 19, 21, 38, 39


def check_layouts(object_path: Path) -> None:
    """The object's records must be those that the decoder was generated for."""
    if not object_path.exists():
        raise ProbeError(f"no BPF object at {object_path}: build it with 'make bpf'")
    layouts = btf.Btf.of_object(object_path)
    for name, expected in LAYOUTS.items():
        if layouts.struct(name) != expected:
            raise ProbeError(f"struct {name} of {object_path} is not the one in wire/events.py: run 'make events'")


def require_privilege() -> None:
    held = _capabilities()
    if _CAP_SYS_ADMIN not in held and not {_CAP_BPF, _CAP_PERFMON} <= held:
        raise CannotError(
            "loading BPF programs needs root, or CAP_BPF and CAP_PERFMON: run as root, or as the systemd service"
        )


def sees_others() -> tuple[bool, bool]:
    """Whether libraries are found in processes of other users, and whether in their containers too.

    CAP_SYS_PTRACE gives both. CAP_PERFMON gives their maps on some kernels, where /proc does not hide them.
    """
    if _CAP_SYS_PTRACE in _capabilities():
        return True, True
    return any(
        _readable(process / "maps") for process in Path("/proc").glob("[0-9]*") if _of_other(process)
    ), False


def _of_other(process: Path) -> bool:
    try:
        return process.stat().st_uid != os.geteuid() and process.joinpath("cmdline").read_bytes() != b""
    except OSError:  # it has ended
        return False


def _readable(maps: Path) -> bool:
    try:
        return maps.read_bytes() != b""
    except OSError:
        return False


def _capabilities() -> set[int]:
    text = Path("/proc/self/status").read_text()
    effective = int(re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.M)[1], 16)  # type: ignore[index]
    return {bit for bit in range(64) if effective >> bit & 1}


def cpu_controller_is_v1(mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a cgroup id of the cpu controller is one of the v1 hierarchy."""
    # In bytes: whoever may mount chooses names in it, and text has ends of lines that the kernel does not have.
    for line in filter(None, mounts.read_bytes().split(b"\n")):
        _, _, kind, flags, *_ = line.split(b" ")
        if kind == b"cgroup" and b"cpu" in flags.split(b","):
            return True
    return False
