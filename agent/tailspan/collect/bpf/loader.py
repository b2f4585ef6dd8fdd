"""Which of the two loaders: ``core`` takes the compiled object and the kernel's BTF, ``bcc`` compiles here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tailspan.collect.bpf import btf
from tailspan.collect.bpf.libbpf import BpfObject, Map, Uprobes
from tailspan.collect.bpf.probes import PROBES
from tailspan.errors import CannotError

#: All that the agent would attach to.
_NEEDED = {"bpf_uprobe_multi_link"}.union(*((probe.programs | probe.bcc).values() for probe in PROBES))
#: What the catalogue of probes calls things that bcc's programs do without, or that any kernel it runs on has.
_WITHOUT_BTF = frozenset({"bpf_iter__task", "bpf_iter__task_file", "trace_uprobe"})
KALLSYMS = Path("/proc/kallsyms")


class Link(Protocol):
    """An attached program."""

    def close(self) -> None: ...

    def read_iterator(self) -> bytes:
        """Run an iterator once; everything it wrote. Raises :class:`ProbeError`."""


class ProgramObject(Protocol):
    """All programs: adjusted, then loaded once. Whatever fails raises :class:`ProbeError`."""

    remarks: tuple[str, ...]  #: once loaded: what it was made of, and what it cannot tell

    def close(self) -> None: ...

    def set_knob(self, name: str, value: int | bytes) -> None: ...

    def set_max_entries(self, name: str, entries: int) -> None: ...

    def skip_program(self, name: str) -> None: ...

    def use_uprobe_multi(self, name: str) -> None: ...

    def load(self) -> None:
        """What the verifier said is in ``libbpf.library().messages``."""

    def map(self, name: str) -> Map: ...

    def clear(self, name: str) -> None:
        """Make of a map what it was when it was loaded, but for what is stored with its owner."""

    def program_fd(self, name: str) -> int: ...

    def attach(self, name: str) -> Link: ...

    def attach_uprobes(
        self, name: str, pid: int, path: Path, sites: list[tuple[int, int]], returns: bool, multi: bool
    ) -> Uprobes: ...

    def uprobe_multi_takes_processes(self, name: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Choice:
    loader: Literal["core", "bcc"]
    why: str  #: one line
    kernel: frozenset[str]  #: of what there is to attach to, what it has, under the names of its BTF
    no_btf: str = ""  #: why the other one could not be

    def open(self, path: Path, programs: Mapping[str, str], vmlinux: Path) -> ProgramObject:
        """``programs``: name -> what it attaches to."""
        if self.loader == "core":
            return BpfObject(path)
        from tailspan.collect.bpf.bccobject import BccObject  # few kernels need it, and all that it imports

        return BccObject(path, programs, vmlinux)


def choose(wanted: Literal["auto", "core", "bcc"], vmlinux: Path = btf.VMLINUX) -> Choice:
    """Raises :class:`CannotError` where ``core`` is wanted and the kernel has no BTF, or what is there is none."""
    configured = "as configured" if wanted != "auto" else ""
    try:
        kernel = btf.kernel_has(_NEEDED, vmlinux)
    except CannotError as error:
        if wanted == "core" or vmlinux.exists():
            raise
        return Choice("bcc", configured or f"no BTF at {vmlinux}", _tracepoints(), str(error))
    if wanted == "bcc":
        return Choice("bcc", configured, kernel | _WITHOUT_BTF)
    return Choice("core", configured or f"BTF at {vmlinux}", kernel)


def _tracepoints(kallsyms: Path = KALLSYMS) -> frozenset[str]:
    """From the kernel's symbols: each tracepoint has a function of its own (since 5.10)."""
    try:
        text = kallsyms.read_text()
    except OSError:
        text = ""
    found = {f"btf_trace_{name}" for name in re.findall(r" __traceiter_(\w+)", text)}
    if not found:  # systemd hides it by an empty file
        raise CannotError(
            f"{kallsyms}, which says what can be traced where there is no BTF, is hidden: in a service, set "
            "ProtectKernelTunables=no, and ProtectKernelModules=no for the kernel's headers"
        )
    if " bpf_uprobe_multi_link_attach" in text:
        found.add("bpf_uprobe_multi_link")
    return frozenset(found) | _WITHOUT_BTF
