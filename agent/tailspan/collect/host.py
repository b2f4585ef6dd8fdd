"""Facts of the host that are not events: its name and boot, and which path a cgroup id means."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tailspan.collect.bpf.preflight import cpu_controller_is_v1

_REFRESH_S = 2.0
_MAX_CGROUPS = 65_536


def host_name() -> str:
    return socket.gethostname()


def node_name(environ: Mapping[str, str]) -> str:
    """Of the Kubernetes node, where the agent's pod is told it (``fieldRef: spec.nodeName``); else ""."""
    return environ.get("K8S_NODE_NAME", "") or environ.get("NODE_NAME", "")


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_started(pid: int) -> int:
    """When a process did, in clock ticks since the machine did; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def character_majors(prefix: str, devices: Path = Path("/proc/devices")) -> list[int]:
    """Major numbers of the character devices of drivers whose names begin so."""
    try:
        character, _, _ = devices.read_text().partition("\nBlock devices:")
    except OSError:
        return []
    entries = (line.split() for line in character.splitlines())
    return [int(words[0]) for words in entries if len(words) == 2 and words[1].startswith(prefix)]


@functools.lru_cache(256)
def device_name(dev: int) -> str:
    """Of a block device by the kernel's number, ``(major << 20) | minor``: ``vda``; ``254:0`` where it is gone."""
    number = f"{dev >> 20}:{dev & 0xFFFFF}"
    try:
        return Path(f"/sys/dev/block/{number}").resolve(strict=True).name
    except OSError:
        return number


class Cgroups:
    """cgroup id -> path below the hierarchy's root; an id is the inode of the cgroup's directory.

    Remembers cgroups that are gone: a culprit is often looked up after it ended. Bounded.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or _cpu_hierarchy()
        self._paths: dict[int, str] = {}
        self._walked = -_REFRESH_S

    def path(self, cgroup_id: int) -> str:
        """``/batch.slice``; ``""`` when nothing by that id was ever seen."""
        if cgroup_id not in self._paths and time.monotonic() - self._walked >= _REFRESH_S:
            self._walk()
        return self._paths.get(cgroup_id, "")

    def _walk(self) -> None:
        self._walked = time.monotonic()
        if len(self._paths) > _MAX_CGROUPS:
            self._paths.clear()
        for folder, _, _ in os.walk(self._root):
            try:
                inode = Path(folder).stat().st_ino
            except OSError:  # removed meanwhile
                continue
            path = folder.removeprefix(str(self._root)) or "/"
            # Whoever was given a subtree names the groups in it, in any bytes; what is stored is text.
            self._paths[inode] = os.fsencode(path).decode(errors="replace")


def _cpu_hierarchy(mounts: Path = Path("/proc/self/mounts")) -> Path:
    """Where the hierarchy is mounted whose ids the BPF programs report."""
    v1 = cpu_controller_is_v1(mounts)
    for line in filter(None, mounts.read_bytes().split(b"\n")):  # in bytes, as there
        _, at, kind, flags, *_ = line.split(b" ")
        if (v1 and kind == b"cgroup" and b"cpu" in flags.split(b",")) or (not v1 and kind == b"cgroup2"):
            return Path(os.fsdecode(at))
    return Path("/sys/fs/cgroup")
