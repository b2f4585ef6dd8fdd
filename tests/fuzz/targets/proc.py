"""The kernel's text about processes and mounts, where others chose a name in it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from unittest.mock import patch

from tailspan.collect.bpf.cuda import _MAPPED
from tailspan.collect.bpf.preflight import cpu_controller_is_v1
from tailspan.collect.host import _cpu_hierarchy
from tailspan.collect.otlp import proc
from tailspan.collect.targets import cgroup_paths
from tests.fuzz import frames
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import scratch

_PID, _UID, _INODE = 4711, 1000, 5150
_LOOPBACK = bytes(10) + b"\xff\xff\x7f\0\0\1"


def check(data: bytes) -> None:
    """Pieces: a command name, a cgroup's name, a mount point, a mapped file."""
    comm, cgroup, mount, mapped = frames.exactly(data, 4)
    root = scratch.folder("proc")
    shutil.rmtree(root, ignore_errors=True)
    _write_process(root, comm.replace(b"\0", b"")[:15])
    with patch.object(proc, "PROC", root):
        assert list(proc.processes()) == [(_PID, 7, _UID)]
        assert proc.holders(_LOOPBACK, 0xA028, 0x10DE) == [(_PID, 7, _UID)]
        assert proc._started(root / str(_PID)) == 777
    _check_cgroup(cgroup)
    _check_mounts(root / "mounts", mount)
    path = b"/" + _octal(mapped.replace(b"\0", b""), b"\n")
    line = b"7f00-7f10 r-xp 00001000 fd:01 42                 " + path + b"\n"
    assert (
        _MAPPED.findall((line + line).decode(errors="replace"))
        == [("fd:01", "42", path.decode(errors="replace"))] * 2
    )


def _write_process(root: Path, comm: bytes) -> None:
    folder = root / str(_PID)
    (folder / "fd").mkdir(parents=True)
    (folder / "fd" / "3").symlink_to(f"socket:[{_INODE}]")
    (root / "net").mkdir()
    name = comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")  # fs/proc/array.c: proc_task_name()
    (folder / "status").write_bytes(
        b"Name:\t%s\nState:\tS (sleeping)\nTgid:\t%d\nUid:\t1\t%d\t1\t1\nNStgid:\t%d\t7\n"
        % (name, _PID, _UID, _PID)
    )
    fields = b" ".join([b"S", *[b"0"] * 18, b"777", b"0"])
    (folder / "stat").write_bytes(b"%d (%s) %s\n" % (_PID, comm, fields))
    head = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = b"   0: 0100007F:A028 0100007F:10DE 01 00000000:00000000 00:00000000 00000000  1000        0 %d 1\n"
    (root / "net" / "tcp").write_bytes(head + row % _INODE)


def _check_cgroup(cgroup: bytes) -> None:
    name = cgroup.replace(b"\0", b"").replace(b"\n", b"").strip(b"/.")  # the kernel allows none of the first two
    text = b"12:cpu,cpuacct:/%s\n0::/%s\n" % (name, name)
    assert cgroup_paths(text) == (os.fsdecode(b"/" + name),), "a cgroup's name makes another path"


def _check_mounts(file: Path, mount: bytes) -> None:
    at = _octal(mount.replace(b"\0", b""), b" \t\n\\")  # fs/proc_namespace.c: mangle()
    file.write_bytes(
        b"proc /proc proc rw 0 0\n%s /%s fuse.%s rw,user_id=1000 0 0\n" % (at or b"x", at, at[:8])
        + b"cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    )
    assert not cpu_controller_is_v1(file)
    assert _cpu_hierarchy(file) == Path("/sys/fs/cgroup/unified")


def _octal(text: bytes, escaped: bytes) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in escaped else bytes([byte]) for byte in text)


def seeds() -> dict[str, bytes]:
    return {
        "plain": frames.join((b"python3", b"web.service", b"mnt/data", b"usr/lib/libcuda.so.1")),
        "text": frames.join(("café) S 1".encode(), b"a:b c", b"a b\tc", b"tmp/a b (deleted)")),
    }


def _piece(which: int, piece: bytes, rng: random.Random, change: Change) -> bytes:
    if rng.random() < 0.5:
        at = rng.randrange(len(piece) + 1)
        return piece[:at] + rng.choice(_SEPARATORS) + piece[at:]
    return change(piece, len(piece) + 8)


#: What bytes, text and the kernel mean by a line and by a space is not the same.
_SEPARATORS = (
    b"\x0b",
    b"\x0c",
    b"\x1c",
    b"\x85",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xc2\xa0",
    b"\r",
    b"\xff",
    b":",
    b")",
)


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    return frames.mutate(frames.join(frames.exactly(data, 4)), rng, change, _piece, fixed=True)


TARGET = Target(
    name="proc",
    reads="the kernel's text about processes, cgroups and mounts, in which any user chose the names, by "
    "`collect.otlp.proc`, `targets`, `host`, `preflight` and `cuda`",
    holds="whatever the names are, the numbers and paths beside them are read as they are",
    sources=("tailspan.collect.otlp.proc",),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=_SEPARATORS,
    max_bytes=512,
)
