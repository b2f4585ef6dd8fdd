"""Markdown: the pieces that sections are made of, and the page that they make."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from tests.bench.spread import Figures


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[int] = (0,)) -> str:
    """``words``: columns that are text, and begin on the left; all others are figures."""
    lines = [header, ["---" if column in words else "---:" for column in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def wrapped(markdown: str) -> str:
    """Paragraphs filled to a line's length; tables, headings and code as they are."""
    return "\n\n".join(
        block if block.startswith(("#", "|", "```")) else textwrap.fill(block, 115, break_on_hyphens=False)
        for block in markdown.split("\n\n")
    )


def number(value: float) -> str:
    """Three significant digits, thousands set apart."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def span(figure: Figures) -> str:
    """``median (min to max)``."""
    return f"{number(figure['median'])} ({number(figure['min'])} to {number(figure['max'])})"


def interval(figure: Figures) -> str:
    """``0.941 [0.923, 0.960]``."""
    return f"{figure['median']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def machine() -> Figures:
    """What the figures depend on."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    info = {key.strip(): value.strip() for key, _, value in lines}
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": info.get("model name", platform.machine()),
        "cpus": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in info.get("flags", "").split(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_before": round(os.getloadavg()[0], 2),
    }


_HOW = """# Overhead

What tailspan costs the host, the worker and itself, measured against **the agent being absent**: no process, no
program attached, no socket. This page is written by the benchmark; to replace its figures by your own:

```
make bench JSON=overhead.json
.venv/bin/python -m tests.bench --render overhead.json --picture docs/pictures/growth.svg > docs/overhead.md
```

Ratios come from interleaved runs: each run with the agent is divided by its neighbour in time without, the
median of those quotients is given, and in brackets its 95 % bootstrap interval. An interval that contains 1
means that no difference could be shown. Raw values are given as *median (lowest to highest)*: the distance
between the two is the noise of the machine. Nothing leaves the host: all traffic is on 127.0.0.1 and unix
sockets."""


def page(results: Figures, renderers: dict[str, Callable[[Figures], str]], head: Callable[[Figures], str]) -> str:
    """The whole page; ``results`` as ``--json`` wrote it. A bench that was not run has no section.

    ``head``: makes of all benches what comes before the first section.
    """
    parts = [_HOW, _machine(results), head(results["benches"])]
    parts += [render(results["benches"][name]) for name, render in renderers.items() if name in results["benches"]]
    return wrapped("\n\n".join(parts))


def _machine(results: Figures) -> str:
    here = results["machine"]
    kind = "a virtual machine" if here["virtual"] else "no virtual machine"
    text = (
        f"The machine: {here['cpus']} CPUs of an {here['cpu']}, {here['memory_gib']} GiB, {kind}; Linux"
        f" {here['kernel']}, Python {here['python']}, numpy {here['numpy']}. Load average when the run began:"
        f" {here['load_before']}."
    )
    if took := results.get("took_s"):
        each = ", ".join(f"{name} {number(seconds)}" for name, seconds in took.items())
        text += f" The run took {number(sum(took.values()) / 60)} minutes; s: {each}."
    if results["quick"]:
        text += (
            "\n\n**These figures are from a short run (`--quick`)**: few rounds of a second or less, good to see"
            " that everything works and of what order the costs are, not to compare versions by."
        )
    return text
