"""All programs, loaded: what this kernel has is chosen, the verifier takes it or takes a probe out."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tailspan.collect.bpf import btf, libbpf
from tailspan.collect.bpf.loader import ProgramObject, choose
from tailspan.collect.bpf.preflight import check_layouts, cpu_controller_is_v1, require_privilege
from tailspan.collect.bpf.probes import PROBES, Probe
from tailspan.collect.bpf.ring import RINGS
from tailspan.collect.bpf.shapes import call_shapes
from tailspan.config import Config
from tailspan.errors import CannotError, ProbeError

OBJECT = Path(__file__).resolve().parents[2] / "_bpf" / "tailspan.bpf.o"

#: clock_gettime(2); its resolution is a tick of the kernel. Python's time module does not name it.
_CLOCK_MONOTONIC_COARSE = 6


@dataclass(slots=True)
class Options:
    object_path: Path = OBJECT
    vmlinux: Path = btf.VMLINUX
    loader: Literal["auto", "core", "bcc"] = "auto"  #: "auto": core where the kernel has BTF
    disabled: frozenset[str] = frozenset()  #: probe names not to load at all
    cycle_ring_bytes: int = 1 << 20  #: per CPU; 4,854 records, at 15 ms a drain 320,000 records/s
    slice_ring_bytes: int = 1 << 19
    thread_ring_bytes: int = 1 << 16
    syscall_ring_bytes: int = 1 << 16
    socket_ring_bytes: int = 1 << 18
    connection_ring_bytes: int = 1 << 16
    block_ring_bytes: int = 1 << 19
    incident_ring_bytes: int = 1 << 14
    gpu_call_ring_bytes: int = 1 << 17
    short_wait_ns: int = 10_000
    syscall_floor_ns: int = 1_000_000
    socket_floor_ns: int = 1_000_000


@dataclass(slots=True)
class ProbeStatus:
    probe: Probe
    attached: bool = False
    loaded: bool = False
    why: str = ""  #: why it is not there, or not all of it, or not in every process; "" when it is
    partly: str = ""  #: why not all of it can be there
    mend: str = ""


def options(config: Config) -> Options:
    """What the configuration says of them."""
    return Options(
        loader=config.probes.loader,
        disabled=frozenset(config.probes.disabled),
        cycle_ring_bytes=config.probes.ring_kib << 10,
        slice_ring_bytes=config.probes.ring_kib << 9,
        short_wait_ns=config.probes.short_wait_us * 1000,
        syscall_floor_ns=config.probes.syscall_floor_us * 1000,
    )


class Programs:
    """Begins to load them. The kernel verifies for a sixth of a second: others may work meanwhile.

    The constructor raises :class:`CannotError` where it is known before that a required probe cannot be had;
    :meth:`loaded` does where it turns out later.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.status = {probe.name: ProbeStatus(probe) for probe in PROBES}
        self.cpus = libbpf.possible_cpus()
        self.uprobe_multi = False  #: one link for all functions of a process, rather than one each
        check_layouts(self.options.object_path)
        self.choice = choose(self.options.loader, self.options.vmlinux)
        require_privilege()
        self._rule_out_missing()
        self._object = self._prepared()
        self._error: BaseException | None = None
        self._loading = threading.Thread(target=self._load, name="load", daemon=True)
        self._loading.start()

    def loaded(self) -> ProgramObject:
        """Waits until they are. Raises :class:`CannotError` where a required probe is not among them."""
        self._loading.join()
        if self._error:
            raise self._error
        return self._object

    def of(self, probe: Probe) -> list[str]:
        """Those of the probe's programs that this kernel has something to attach to."""
        return [program for program, needs in self._all_of(probe).items() if needs in self.choice.kernel]

    def require(self) -> None:
        """Raises :class:`CannotError` where a required probe is missing, and says how to mend it."""
        for status in self.status.values():
            if status.probe.required and (not status.loaded or (status.why and not status.attached)):
                raise CannotError(f"probe {status.probe.name}: {status.why}. {status.mend}".rstrip(". ") + ".")

    def _all_of(self, probe: Probe) -> dict[str, str]:
        return probe.programs | probe.bcc if self.choice.loader == "bcc" else probe.programs

    def _rule_out_missing(self) -> None:
        kernel = self.choice.kernel
        for status in self.status.values():
            probe = status.probe
            absent = {name: needs for name, needs in self._all_of(probe).items() if needs not in kernel}
            missing = [needs for name, needs in absent.items() if name not in probe.optional | probe.partial]
            partly = [needs for name, needs in absent.items() if name in probe.partial]
            if probe.name in self.options.disabled:
                status.why, status.mend = "disabled by configuration", "remove it from probes.disabled"
            elif missing:
                status.why, status.mend = _lacks(missing), "a newer kernel"
            else:
                status.loaded = True
                if partly:
                    status.partly, status.mend = _lacks(partly), "a newer kernel"
        self._use_uprobe_multi("bpf_uprobe_multi_link" in kernel)

    def _use_uprobe_multi(self, usable: bool) -> None:
        self.uprobe_multi = usable
        for status in self.status.values():
            if status.probe.in_libraries and status.loaded and self.choice.loader == "bcc" and not usable:
                status.loaded = False
                status.why, status.mend = "before kernel 6.10 it needs the core loader", "a kernel with BTF"

    def _load(self) -> None:
        """Load all that can be loaded: a program that the kernel refuses takes its probe out, not the others."""
        heard = False
        try:
            while not self._is_taken(self._object, heard):
                heard = True
                self._object = self._prepared()
        except BaseException as error:
            self._error = error

    def _is_taken(self, candidate: ProgramObject, heard: bool) -> bool:
        """Whether the kernel takes it. If not, the next one does without what it was refused for, once that is
        ``heard``."""
        try:
            with contextlib.nullcontext() if heard else libbpf.library().unheard():
                candidate.load()
            if self._multi_is_usable(candidate):
                return True
            self._use_uprobe_multi(False)
            candidate.close()
        except ProbeError as error:
            candidate.close()
            if heard:
                self._blame(error)
        except CannotError as error:
            candidate.close()
            no_btf = self.choice.no_btf
            raise CannotError(f"{no_btf}; nor can bcc: {error}" if no_btf else str(error)) from None
        return False

    def _prepared(self) -> ProgramObject:
        self.require()
        needs = {program: needs for probe in PROBES for program, needs in self._all_of(probe).items()}
        candidate = self.choice.open(self.options.object_path, needs, self.options.vmlinux)
        try:
            self._prepare(candidate)
        except BaseException:
            candidate.close()
            raise
        return candidate

    def _prepare(self, candidate: ProgramObject) -> None:
        for status in self.status.values():
            wanted = self.of(status.probe) if status.loaded else []
            for program in self._all_of(status.probe):
                if program not in wanted:
                    candidate.skip_program(program)
                elif status.probe.in_libraries and self.uprobe_multi:
                    candidate.use_uprobe_multi(program)
        for name in ("cpus", *RINGS):
            candidate.set_max_entries(name, self.cpus)
        candidate.set_knob("short_wait_ns", self.options.short_wait_ns)
        candidate.set_knob("syscall_floor_ns", self.options.syscall_floor_ns)
        candidate.set_knob("socket_floor_ns", self.options.socket_floor_ns)
        candidate.set_knob("jiffy_ns", round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9))
        candidate.set_knob("cpu_controller_v1", int(cpu_controller_is_v1()))
        candidate.set_knob("call_shapes", call_shapes())

    def _multi_is_usable(self, candidate: ProgramObject) -> bool:
        if not self.uprobe_multi or not self.status["gpu"].loaded:
            return True  # it is not used
        return candidate.uprobe_multi_takes_processes("on_gpu_call")

    def _blame(self, error: ProbeError) -> None:
        """Find the refused program in what libbpf said, and mark its probe."""
        said = "\n".join(libbpf.library().messages)
        match = re.search(r"prog '(\w+)': (?:failed to load|BPF program load failed)[^\n]*", said)
        for status in self.status.values():
            if match and match[1] in self._all_of(status.probe) and status.loaded:
                status.loaded = False
                status.why = f"the kernel refuses program {match[1]}: {_last_verifier_line(said)}"
                status.mend = "report it with the kernel's version"
                return
        raise ProbeError(f"{error}\n{said[-2000:]}")


def _lacks(types: list[str]) -> str:
    return "this kernel has no " + ", ".join(sorted(name.removeprefix("btf_trace_") for name in types))


def _last_verifier_line(said: str) -> str:
    lines = [
        line for line in said.splitlines() if line and not line.startswith(("libbpf", "processed", "--", ";"))
    ]
    return lines[-1][:200] if lines else "no reason given"
