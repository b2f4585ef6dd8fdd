"""``tailspan check``: what works here. Needs no agent; loads the probes itself, and lets go of them."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from tailspan import config
from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.config import Config
from tailspan.errors import CannotError

if TYPE_CHECKING:
    from tailspan.collect.bpf.programs import ProbeStatus
    from tailspan.timeline.gpus import GpuHost
    from tailspan.views.check import Fact, ProbeReport, State

EXAMPLES = """
  sudo tailspan check                as the agent runs
  sudo tailspan check --loader bcc   as it would without BTF in the kernel
  tailspan check --json | jq .missing
"""

#: A driver without persistence mode wakes the card up first.
_NVML_ANSWERS_S = 10.0


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("check", help="what works on this machine", examples=EXAMPLES)
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: {config.DEFAULT_PATH}, if there")
    arguments.add_loader(parser)
    arguments.add_json(parser)
    arguments.add_width(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.views import check

    flags = {} if args.loader is None else {"probes.loader": args.loader}
    loaded = arguments.known_probes(config.load(args.config, flags=flags))
    probes, loader, error = _probes(loaded)
    report = check.Report(tuple(probes), tuple(_environment(loaded, loader)), error, _gpus(loaded))
    if args.json:
        output.print_json(check.as_json(report))
    else:
        print(check.as_text(report, output.width(args.width), output.colour()))
    if report.error:
        return CannotError.exit_code
    return 1 if report.missing else 0


def _probes(loaded: Config) -> tuple[list[ProbeReport], Fact, str]:
    """Probe by probe, what loaded them, and why none could be had at all."""
    from tailspan.collect.bpf.probes import PROBES
    from tailspan.collect.bpf.programs import Options, ProbeStatus
    from tailspan.collect.bpf.source import BpfSource
    from tailspan.views.check import Fact

    wanted = loaded.probes.loader
    try:
        source = BpfSource(Options(disabled=frozenset(loaded.probes.disabled), loader=wanted))
    except CannotError as error:
        text = " ".join(str(error).split())
        # Where the error is one probe's, it says so; without that one there are no others.
        reports = [
            _report(
                ProbeStatus(probe, why=text.partition(": ")[2] if text.startswith(f"probe {probe.name}:") else "")
            )
            for probe in PROBES
        ]
        return reports, Fact("loader", f"{wanted}: nothing is loaded", False), text
    try:
        _look_into_others(source.status["gpu"])
        loader = Fact("loader", f"{source.loader}: {source.loader_why}", True)
        return [_report(status) for status in source.status.values()], loader, ""
    finally:
        source.close()


def _look_into_others(status: ProbeStatus) -> None:
    """The probe goes into libraries of processes, which must be found in them first."""
    from tailspan.collect.bpf.cuda import MEND, OTHERS_CLOSED
    from tailspan.collect.bpf.preflight import sees_others
    from tailspan.collect.host import character_majors

    others, _ = sees_others()
    if status.attached and not others and character_majors("nvidia"):
        status.why, status.mend = OTHERS_CLOSED, MEND


def _report(status: ProbeStatus) -> ProbeReport:
    from tailspan.views.check import ProbeReport

    probe = status.probe
    works = status.attached and not status.why
    state: State = "works" if works else "off" if status.loaded and not probe.default else "missing"
    return ProbeReport(
        name=probe.name,
        state=state,
        default=probe.default,
        required=probe.required,
        answers=probe.answers,
        why=status.why,
        without=probe.without,
        mend=status.mend,
        cost=probe.cost if probe.default else f"off by default: {probe.cost}",
    )


def _environment(loaded: Config, loader: Fact) -> list[Fact]:
    from tailspan.collect.bpf.btf import VMLINUX
    from tailspan.views.check import Fact

    has_btf = VMLINUX.exists()
    mend = "needs a kernel with CONFIG_DEBUG_INFO_BTF, or the loader bcc"
    return [
        Fact("kernel", f"{platform.release()} {platform.machine()}"),
        loader,
        Fact("BTF", str(VMLINUX), True) if has_btf else Fact("BTF", f"no {VMLINUX}", None, mend),
        _privileges(),
        _libbpf(),
        _cpu_controller(),
        _containers(),
        _place("worker socket", Path(loaded.worker.socket).parent, loaded.worker.socket),
        _place("store", Path(loaded.store.path), loaded.store.path),
        _agent(Path(loaded.agent.control)),
    ]


def _privileges() -> Fact:
    from tailspan.collect.bpf.preflight import require_privilege
    from tailspan.views.check import Fact

    try:
        require_privilege()
    except CannotError as error:
        return Fact("privileges", f"uid {os.geteuid()}", False, str(error))
    return Fact("privileges", f"uid {os.geteuid()}, may load BPF", True)


def _libbpf() -> Fact:
    import ctypes

    from tailspan.collect.bpf.libbpf import library
    from tailspan.views.check import Fact

    try:
        version = library().dll.libbpf_version_string
    except CannotError as error:
        return Fact("libbpf", "missing", False, str(error))
    version.restype = ctypes.c_char_p
    return Fact("libbpf", version().decode(), True)


def _cpu_controller() -> Fact:
    from tailspan.collect.bpf.preflight import cpu_controller_is_v1
    from tailspan.views.check import Fact

    return Fact("cpu controller", "cgroup v1" if cpu_controller_is_v1() else "cgroup v2")


def _containers() -> Fact:
    from tailspan.collect.bpf.cuda import MEND
    from tailspan.collect.bpf.preflight import sees_others
    from tailspan.views.check import Fact

    _, inside = sees_others()
    return Fact(
        "containers", "CUDA libraries are found in them" if inside else f"CUDA libraries: {MEND} finds them"
    )


def _gpus(loaded: Config) -> GpuHost:
    """What NVML says at a first look."""
    from tailspan.collect.nvml import GpuSampler
    from tailspan.timeline.gpus import GpuHost, NvmlState

    if loaded.gpu.nvml == "off":
        return GpuHost(NvmlState.OFF, "by configuration")
    sampler = GpuSampler(loaded.gpu.sample_ms, loaded.gpu.budget)
    try:
        if sampler.settled(_NVML_ANSWERS_S):
            return sampler.host()
        return GpuHost(NvmlState.NO_DRIVER, f"it does not answer within {_NVML_ANSWERS_S:g} s")
    finally:
        sampler.close()


def _place(name: str, directory: Path, shown: str) -> Fact:
    """Whether something can be made in ``directory``, or in what exists of it."""
    from tailspan.views.check import Fact

    existing = next((at for at in (directory, *directory.absolute().parents) if at.exists()), Path("/"))
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Fact(name, shown, True)
    return Fact(name, shown, False, f"uid {os.geteuid()} cannot write to {existing}")


def _agent(control: Path) -> Fact:
    from tailspan.control import ask
    from tailspan.views.check import Fact

    try:
        ask(control, {"do": "nothing"}, 3.0)
    except CannotError as error:
        return Fact("agent", str(error))
    return Fact("agent", f"answers on {control}")
