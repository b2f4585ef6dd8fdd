"""Compiles ``bpf/`` by bcc, in a process of its own: bcc takes 150 MB and may end the process that it is in.

What comes back is bytes of programs, which the agent loads itself. They are kept for the next start: only a new
kernel or new sources are compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailspan.collect.bpf import btf, headers
from tailspan.errors import CannotError, ProbeError

#: ``make bpf`` puts the sources beside the compiled object; the wheel carries both.
SOURCES = Path(__file__).resolve().parents[2] / "_bpf"
#: Where systemd's CacheDirectory= is, if not told.
CACHE = Path("/var/cache/tailspan")

#: Compiled programs kept, the last used ones: some 200 KB each.
_KEPT = 16
#: Some seconds on a server; minutes in an emulated guest.
_SECONDS = 600.0
#: Of the other loader, and of another program.
_NOT_COMPILED = ("core.h", "kernel.h", "stacks.bcc.c")
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class _Member:
    """A field that not every kernel has, and how headers show it."""

    struct: str
    header: str  #: in a package; "" if no header shows the struct
    option: str  #: of the kernel's configuration, without which it is not there


#: For HAS_... of bpf/bcc.h. In a stub made from BTF every struct is whole and in vmlinux.h.
_MEMBERS = {
    "throttled": _Member("task_struct", "linux/sched.h", "CFS_BANDWIDTH"),
    "throttle_count": _Member("cfs_rq", "", ""),
    "throttled_clock_self_time": _Member("cfs_rq", "", ""),
    "rq": _Member("cfs_rq", "", ""),
    "clock": _Member("rq", "", ""),
    "last_arrival": _Member("sched_info", "linux/sched.h", "SCHED_INFO"),
    "in_memstall": _Member("task_struct", "linux/sched.h", "PSI"),
    "skc_v6_daddr": _Member("sock_common", "net/sock.h", "IPV6"),
}
#: The last helpers of the kernel, from 5.19 to 6.2; then the list was closed. What bcc declares names all of them.
_NEWEST_HELPERS = {
    "kptr_xchg": 194,
    "map_lookup_percpu_elem": 195,
    "skc_to_mptcp_sock": 196,
    "dynptr_from_mem": 197,
    "ringbuf_reserve_dynptr": 198,
    "ringbuf_submit_dynptr": 199,
    "ringbuf_discard_dynptr": 200,
    "dynptr_read": 201,
    "dynptr_write": 202,
    "dynptr_data": 203,
    "tcp_raw_gen_syncookie_ipv4": 204,
    "tcp_raw_gen_syncookie_ipv6": 205,
    "tcp_raw_check_syncookie_ipv4": 206,
    "tcp_raw_check_syncookie_ipv6": 207,
    "ktime_get_tai_ns": 208,
    "user_ringbuf_drain": 209,
    "cgrp_storage_get": 210,
    "cgrp_storage_delete": 211,
}
#: Where none of these is there.
_WITHOUT = {
    ("throttled", "throttle_count"): "a wait out of CPU quota is taken for a wait for a CPU",
    ("in_memstall",): "a sleep in memory reclaim is not told",
}


@dataclass(frozen=True, slots=True)
class Compiled:
    programs: dict[str, bytes]  #: name -> its instructions, in which maps are numbers
    why: str  #: one line: what it was compiled on
    lacks: tuple[str, ...]  #: what cannot be told for want of fields in the headers


def compile_programs(names: Sequence[str], maps: Mapping[str, int], vmlinux: Path = btf.VMLINUX) -> Compiled:
    """The programs ``names`` of ``bpf/``, with these numbers for maps.

    Raises :class:`CannotError` where there is no bcc, or nothing to compile on, and :class:`ProbeError` with what
    the compiler said.
    """
    wanted = {
        "text": _text(maps),
        "names": list(names),
        "flags": [f"-D__TARGET_ARCH_{_architecture()}", "-DTAILSPAN_BCC", f"-I{SOURCES}", "-w"],
        "vmlinux": str(vmlinux),
    }
    with _folder() as folder:
        entry = f"programs-{_key(wanted)}"

        def write(tree: Path) -> None:
            (tree / "programs.json").write_text(_in_another_process(wanted | {"folder": str(folder)}))

        tree = headers.kept(folder, entry, write)
        found = json.loads((tree / "programs.json").read_text())
        _forget_old(folder, tree)
    programs = {name: bytes.fromhex(code) for name, code in found["programs"].items()}
    return Compiled(programs, found["why"], tuple(found["lacks"]))


def default_knobs() -> dict[str, int]:
    """What each knob is in the sources; one after the other in the map of that name."""
    text = "".join(source.read_text() for source in _sources())
    return {name: int(value) for name, value in re.findall(r"^KNOB\(\w+, (\w+), (\d+)\)", text, re.M)}


def _text(maps: Mapping[str, int]) -> str:
    """All that bcc is handed. It rewrites what it is handed, but not what that includes."""
    lines = ['#include "bcc.h"', *(f"#define {name} tailspan_{name}" for name in _own_names())]
    lines += [f"#define {name} MAP_AT({number})" for name, number in maps.items()]
    lines += [f"#define {name} KNOB_AT({number})" for number, name in enumerate(default_knobs())]
    return "\n".join([*lines, '#include "tailspan.bpf.c"', ""])


def _own_names() -> list[str]:
    """Of our structs, enums and their members: a stub has every type of the kernel, some by the same name."""
    found: set[str] = set()
    for source in _sources():
        text = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.S)
        found.update(re.findall(r"^(?:struct|enum) (\w+) \{", text, re.M))
        for members in re.findall(r"^enum \w* ?\{(.*?)\}", text, re.M | re.S):
            found.update(re.findall(r"(\w+)\s*=", members))
    return sorted(found)


def _sources() -> list[Path]:
    return sorted(source for source in SOURCES.glob("*.[ch]") if source.name not in _NOT_COMPILED)


def _architecture() -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise CannotError(f"the loader bcc knows {' and '.join(_ARCHITECTURES)}, not {machine}")
    return _ARCHITECTURES[machine]


def _key(wanted: Mapping[str, object]) -> str:
    """The build id among the kernel's notes tells it from any other of the same version."""
    digest = hashlib.sha256(json.dumps([wanted, platform.uname()]).encode())
    with contextlib.suppress(OSError):
        digest.update(Path("/sys/kernel/notes").read_bytes())
    for source in _sources():
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Where compiled programs are kept; a temporary one where nothing may be."""
    folder = Path(os.environ.get("CACHE_DIRECTORY", "").partition(":")[0] or CACHE)
    existing = next(at for at in (folder, *folder.parents) if at.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="tailspan-bcc-") as temporary:
            yield Path(temporary)


def _forget_old(folder: Path, used: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(used)
        trees = sorted(folder.glob("programs-*"), key=lambda tree: tree.stat().st_mtime)
        for tree in trees[:-_KEPT]:
            shutil.rmtree(tree, ignore_errors=True)


def _in_another_process(wanted: Mapping[str, object]) -> str:
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(
            command, input=json.dumps(wanted), capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"bcc has not compiled the programs within {_SECONDS:g} s") from None
    if done.returncode == CannotError.exit_code:
        raise CannotError(done.stderr.strip())
    if done.returncode:  # its end, where the first error is not far
        raise ProbeError(f"bcc cannot compile the programs: {_first_error(done.stderr) or done.returncode}")
    return done.stdout.splitlines()[-1]  # what bcc may have printed comes first


def _first_error(said: str) -> str:
    return next((line.strip() for line in said.splitlines() if "error:" in line), said.strip()[-300:])


def _compile(wanted: dict[str, object]) -> dict[str, object]:
    """In the other process."""
    tree = headers.find(Path(str(wanted["folder"])), vmlinux=Path(str(wanted["vmlinux"])))
    members = {name: _has(tree, name, member) for name, member in _MEMBERS.items()}
    has = (f"-DHAS_{name}={int(has)}" for name, has in members.items())
    flags = [*wanted["flags"], *has, *missing_helpers(tree)]  # type: ignore[misc]
    bcc = headers.import_bcc()
    with tree.in_use():
        module = bcc.BPF(text=str(wanted["text"]), cflags=flags)
    return {
        "programs": {name: module.dump_func(name.encode()).hex() for name in wanted["names"]},  # type: ignore[attr-defined]
        "why": f"compiled by bcc on {'headers' if tree.kind == 'package' else 'a stub of headers'} {tree.why}",
        "lacks": [text for names, text in _WITHOUT.items() if not any(members[name] for name in names)],
    }


def missing_helpers(tree: headers.Headers) -> list[str]:
    """Flags that define what bcc's declarations name and a stub of an older kernel does not have."""
    if tree.kind == "package":  # they go with bcc's own bpf.h
        return []
    text = (tree.path / "include/vmlinux.h").read_text(errors="replace")
    return [
        f"-DBPF_FUNC_{name}={number}"
        for name, number in _NEWEST_HELPERS.items()
        if f"BPF_FUNC_{name} = " not in text
    ]


def _has(tree: headers.Headers, name: str, member: _Member) -> bool:
    header = "vmlinux.h" if tree.kind == "btf" else member.header
    if not header:
        return False
    text = (tree.path / "include" / header).read_text(errors="replace")
    body = re.search(rf"^struct {member.struct} \{{\n(.*?)^\}}", text, re.M | re.S)
    if not body or not re.search(rf"\b{name}\s*[;:]", body[1]):
        return False
    if tree.kind == "btf":
        return True
    configuration = (tree.path / "include/generated/autoconf.h").read_text()
    return re.search(rf"^#define CONFIG_{member.option}(_MODULE)? 1$", configuration, re.M) is not None


def main() -> int:
    try:
        answer = _compile(json.load(sys.stdin))
    except CannotError as error:
        print(error, file=sys.stderr)
        return CannotError.exit_code
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
