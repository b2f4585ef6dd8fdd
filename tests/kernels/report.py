"""The matrix as a page: kernels and loaders across, probes down, and why what is not there is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_PAGE = """# Kernels

The kernels that tailspan was tried on, on {date}, with the loaders of its BPF programs that the table names:

{kernels}

It needs a kernel from 5.18 on (four-argument `sched_switch`) that has BTF, or its headers for bcc; older ones
than those above, and other machines than x86-64, are not tried. Nothing is decided by a version: at start the
agent looks for each tracepoint in what the kernel says of itself. `tailspan check` says what is there, what is
not, and what cannot be known without it; every verdict says so too, and rules out only what could be seen.

{table}

*core*: the object compiled once, relocated by libbpf (CO-RE). *bcc*: the same programs compiled at start by
bcc; *no BTF*: the kernel's BTF hidden, so that bcc compiles on the kernel's own headers. *works*: attached.
*off*: attached when asked for. *missing*: all or a part of it cannot be had. *start*: from the first import
until every probe is attached; bcc compiles in the first one, in a process of its own, and keeps that.
*resident*: the memory of such a process then, and at its peak. An emulated machine is about ten times slower
than a real one.

{notes}

## How it is made

```
make kernels                             # all of it, about {minutes} minutes
.venv/bin/python -m tests.kernels 6.1    # one kernel; `running` is the one that runs now
```

Each kernel but the running one is Debian's own, unchanged, fetched with a private apt root and unpacked into
`.venv/kernels`: nothing is installed. QEMU boots it in software (it needs root, and no KVM). There it finds
this machine's root file system under a layer of memory, so the repository and its virtual environment are where
they are here; cgroup v2 with all controllers; and a disk. With each loader run `tailspan check` and, for every
probe that works, tests of `tests/kernel` ([inside.py](../tests/kernels/inside.py) lists them), among them the
throttled time against `cpu.stat`, and a request that a neighbour slows, whose verdict must name its pid. Where
`tcp` is not whole, other tests show what is left of it, and that no verdict rules out what could not be seen
([degraded.py](../tests/kernels/degraded.py)). What failed ran once more, since an emulated clock stumbles; the
list says so.

`make test` boots 6.1 alone and runs two of these tests there.

## Another kernel

A row in `KERNELS` of [archive.py](../tests/kernels/archive.py): its series, and the Debian suite that has it.
The newest of that series is taken when it is first fetched; remove its folder in `.venv/kernels` to have a
newer one.

A script of your own in such a machine:

```python
from pathlib import Path
from tests.guest import Guest

print(Guest("6.12").run("uname -r; .venv/bin/tailspan check", results=Path("/tmp/results")).output)
```
"""


#: Characters of what a failed test said.
_WHY = 120


@dataclass(slots=True)
class _Notes:
    """Numbered, each said once."""

    said: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """What stands behind a cell; nothing where there is nothing to say."""
        if not text:
            return ""
        if text not in self.said:
            self.said.append(text)
        return f" [{self.said.index(text) + 1}]"


def table(results: dict[str, Any]) -> str:
    """Markdown, with its notes."""
    text, notes = _table(results)
    return f"{text}\n\n{notes}"


def page(results: dict[str, Any]) -> str:
    text, notes = _table(results)
    kernels = "\n".join(f"- {_described(kernel)}" for kernel in results["kernels"])
    minutes = max(1, round(results["wall_s"] / 60))
    return _PAGE.format(date=results["date"], kernels=kernels, table=text, notes=notes, minutes=minutes)


def _described(kernel: dict[str, Any]) -> str:
    where = f"Debian {kernel['suite']}, {kernel['version']}, emulated" if kernel["suite"] else "this machine's own"
    return f"{kernel['series']}: {kernel['release']} ({where})"


def _table(results: dict[str, Any]) -> tuple[str, str]:
    notes = _Notes()
    columns = [(kernel, found) for kernel in results["kernels"] for found in kernel["ways"]]
    head = ["probe", *(f"{kernel['series']} {found['way']}" for kernel, found in columns)]
    rows = [head, ["---", *("---" for _ in columns)]]
    rows += [
        [name, *(_state(found, name, notes) for _, found in columns)]
        for name in dict.fromkeys(probe["name"] for _, found in columns for probe in found["probes"])
    ]
    cells = {
        "tests": _tests,
        "first start, s": _first,
        "start, s": _start,
        "resident, MiB": _resident,
    }
    for name, cell in cells.items():
        rows.append([name, *(cell(found, notes) for _, found in columns)])
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(notes.said, 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), listed + "\n\n" + "\n".join(_failures(results))


def _state(found: dict[str, Any], name: str, notes: _Notes) -> str:
    if found["error"]:
        return f"none{notes.mark(found['error'])}"
    probe = next(probe for probe in found["probes"] if probe["name"] == name)
    return f"{probe['state']}{notes.mark(probe['why'])}"


def _tests(found: dict[str, Any], notes: _Notes) -> str:
    tests = found["tests"]
    if not tests["passed"] and not tests["failed"]:
        return "-"
    failed = f", **{len(tests['failed'])} failed**" if tests["failed"] else ""
    return f"{tests['passed']} passed{failed}" + (f", {len(tests['skipped'])} skipped" if tests["skipped"] else "")


def _first(found: dict[str, Any], notes: _Notes) -> str:
    if found["first_s"] is None:
        return "-"
    compiler = f" (compiler {found['compiler_mib']:.0f} MiB)" if found["compiler_mib"] else ""
    return f"{found['first_s']:.2f}{compiler}"


def _start(found: dict[str, Any], notes: _Notes) -> str:
    return "-" if found["start_s"] is None else f"{found['start_s']:.2f}{notes.mark(found['why'])}"


def _resident(found: dict[str, Any], notes: _Notes) -> str:
    return "-" if found["resident_mib"] is None else f"{found['resident_mib']:.0f} ({found['peak_mib']:.0f})"


def _failures(results: dict[str, Any]) -> Iterator[str]:
    for kernel in results["kernels"]:
        for found in kernel["ways"]:
            again = found["tests"]["again"]
            if again:
                names = ", ".join(f"`{name}`" for name in again)
                yield f"- passed at a second try on {kernel['series']} with {found['way']}: {names}"
            for word in ("failed", "skipped"):
                for name, why in found["tests"][word].items():
                    yield f"- {word} on {kernel['series']} with {found['way']}: `{name}`: {why[:_WHY]}"
