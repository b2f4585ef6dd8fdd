"""Capabilities that nothing needs any more once everything is attached are given up, for good.

A program that is attached, a ring that is mapped and a file that is open stay in use without them; what the agent
does later asks for few of them, or none. Which, this kernel is asked: by doing it in a thread that has none.

Capabilities belong to threads, and a thread hands its own to those that it starts. So they are given up on the
main thread, before it starts any.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import struct
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from tailspan.config import Config
from tailspan.errors import CannotError, TailspanError

log = logging.getLogger(__name__)

#: By their number; include/uapi/linux/capability.h.
_NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
#: include/uapi/linux/prctl.h
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
#: Of what is given up, so many are named in the log: root has 41.
MAX_NAMED = 8
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class Source(Protocol):
    """What is asked of :class:`~tailspan.collect.bpf.source.BpfSource`."""

    @property
    def status(self) -> Mapping[str, Any]: ...
    def threads(self) -> object: ...
    def socket_owners(self, port: int) -> object: ...
    def syscall_histograms(self) -> object: ...
    def attach(self, name: str) -> None: ...
    def detach(self, name: str) -> None: ...


def needed(config: Config, kernel_asks: bool, uprobes_ask: bool) -> dict[str, str]:
    """Capabilities that are used after the start, and what for.

    ``kernel_asks``: what :func:`kernel_asks` found. ``uprobes_ask``: whether a uprobe takes a perf event on this
    kernel.
    """
    of_root, found = os.geteuid() == 0, {}
    if kernel_asks:
        found["BPF"] = found["PERFMON"] = "this kernel asks for it at every look into a map"
    if config.gpu.calls == "on":
        for name in ("PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"):
            found[name] = "CUDA is looked for in workers of other users"
        if uprobes_ask:
            found["SYS_ADMIN"] = "uprobes of this kernel ask for it"
    if config.follow.executables:
        found["SYS_PTRACE"] = "programs of other users are looked at, to follow them"
    written = config.store.path, config.worker.socket, config.agent.control
    if of_root and any(map(_is_anothers, written)):
        found["DAC_OVERRIDE"] = "the store or a socket is in a folder of another user"
    if not of_root or any(map(_is_anothers, (config.tls.certificate, config.tls.key, config.tls.client_ca))):
        found["DAC_READ_SEARCH"] = "certificates and names of containers are in files of other users"
    if any(
        0 < _port(address) < 1024 for address in (config.export.prometheus, config.otlp.grpc, config.otlp.http)
    ):
        found["NET_BIND_SERVICE"] = "a port below 1024 is configured"
    return found


def kernel_asks(source: Source) -> bool:
    """Whether this kernel asks for capabilities to use programs and maps that it has loaded."""
    tracing = source.status["syscalls"]
    was_attached = tracing.attached
    asks = not works_without(lambda: _use(source))
    if tracing.loaded and tracing.attached != was_attached:
        (source.attach if was_attached else source.detach)("syscalls")
    if not was_attached and asks:
        tracing.why = ""
    return asks


def works_without(call: Callable[[], object]) -> bool:
    """Whether ``call`` raises nothing in a thread that has given up its capabilities; the caller keeps its own."""
    done: list[bool] = []

    def attempt() -> None:
        with contextlib.suppress(OSError, TailspanError):
            _set(0)
            call()
            done.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(done)


def give_up(keep: Mapping[str, str]) -> None:
    """All but these, and what a program that is executed might get; said in one line. Raises nothing.

    Where that is forbidden, as by a filter of system calls, and where other threads were there before, a warning
    says who keeps what.
    """
    held = _permitted("thread-self")
    kept = sorted(held & keep.keys())
    try:
        _let_go("SETPCAP" in held, kept)
    except CannotError as error:
        log.warning("privileges: nothing is given up: %s", error)
        return
    tasks = (f"self/task/{task.name}" for task in Path("/proc/self/task").iterdir())
    if others := sum(not _permitted(task) <= set(kept) for task in tasks):
        log.warning("privileges: %d threads that were there before keep theirs", others)
    gone = sorted(held.difference(kept))
    what = ", ".join(f"CAP_{name}" for name in gone) if len(gone) <= MAX_NAMED else f"{len(gone)} others"
    why = ", ".join(f"CAP_{name} ({keep[name]})" for name in kept)
    log.info("privileges: kept %s; gave up %s", why or "none", what or "none")


def _let_go(of_programs: bool, kept: Collection[str]) -> None:
    """``of_programs``: the bounding set too, which asks for CAP_SETPCAP."""
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _call(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    if of_programs:
        for number in range(_last() + 1):
            _call(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    _set(sum(1 << _NAMES.index(name) for name in kept))


def _use(source: Source) -> None:
    """Whatever is done later with what is loaded."""
    source.threads()
    source.syscall_histograms()
    if source.status["owners"].attached:
        source.socket_owners(0)
    if source.status["syscalls"].loaded:  # attached on demand
        source.detach("syscalls")
        source.attach("syscalls")
        if not source.status["syscalls"].attached:
            raise CannotError(source.status["syscalls"].why)


def _permitted(task: str) -> frozenset[str]:
    """Of one thread; none where it has ended. What the kernel has and this list has not is let go unnamed."""
    try:
        text = Path("/proc", task, "status").read_text()
    except OSError:
        return frozenset()
    match = re.search(r"^CapPrm:\s*([0-9a-f]+)", text, re.MULTILINE)
    bits = int(match[1], 16) if match else 0
    return frozenset(name for number, name in enumerate(_NAMES) if bits >> number & 1)


def _set(bits: int) -> None:
    """capset(2) on the calling thread: effective and permitted; nothing is inheritable."""
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _call(ctypes.CDLL(None, use_errno=True).capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))


def _call(result: int) -> None:
    if result:
        raise CannotError(os.strerror(ctypes.get_errno()))


def _last() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def _is_anothers(path: str) -> bool:
    """Whether it, or a folder that it is in, belongs to another user than the agent's."""
    if not path:
        return False
    absolute = Path(path).absolute()
    return any(one.exists() and one.stat().st_uid != os.geteuid() for one in (absolute, *absolute.parents))


def _port(address: str) -> int:
    return int(address.rpartition(":")[2] or 0)
