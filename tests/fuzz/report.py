"""The table of a run, and docs/fuzz.md."""

from __future__ import annotations

from typing import Any

from tests.bench.page import machine, table, wrapped
from tests.fuzz.corpus import inputs, lines
from tests.fuzz.findings import FINDINGS
from tests.fuzz.target import Target
from tests.fuzz.targets import load

Figures = dict[str, Any]

HEAD = "".join(
    (f"{'target':<15}", *(f"{name:>11}" for name in ("executions", "/s", "edges", "features", "slowest", "RSS")))
)

_INTRO = """# Fuzzing

Everything that reads bytes which are not the agent's own is fuzzed by coverage: libFuzzer, by way of
[atheris](https://github.com/google/atheris), changes inputs, keeps those that reach more of the agent's bytecode,
and stops at one that breaks what the target asserts. Where a format has checksums, lengths or a grammar, a target
changes the value inside and makes them true again. An input may take {input_s} s, and the process {rss} MiB.

```
make fuzz SECONDS=600                                    # every target so long, one after the other
.venv/bin/python -m tests.fuzz spool btf --seconds 600   # some
.venv/bin/python -m tests.fuzz --seconds 60 --keep       # and keep in tests/fuzz/corpus/ what reaches more
.venv/bin/python -m tests.fuzz --json figures.json
.venv/bin/python -m tests.fuzz --render figures.json > docs/fuzz.md
```

`make test` runs the whole corpus through every target, and fuzzes each for a moment. What fails is written to
`fuzz-findings/`: the input, and what was raised. It becomes a file `crash-…` of the corpus, a test beside what
was mended, and a line below."""

_LEFT_OUT = """## What is not fuzzed

Records of the kernel's rings: the kernel writes them, and their layout is checked against the object at start.
libbpf and bcc themselves, which read the kernel's BTF and the ELF files of processes for stacks. gRPC's own
framing, and TLS: the libraries' work. NVML. Verdicts on stored evidence that no kernel could have written: a file
with true checksums is the agent's own."""


def row(name: str, figures: Figures) -> str:
    per_s = figures["executions"] / max(figures["seconds"], 0.1)
    text = (
        f"{name:<15}{figures['executions']:>11,}{per_s:>11,.0f}{figures['edges']:>11}{figures['features']:>11}"
        f"{figures['slowest_s']:>9} s{figures['peak_rss_mib']:>7} MiB"
    )
    return text + ("  FAILED" if figures["finding"] else "")


def page(results: Figures) -> str:
    from tests.fuzz.engine import INPUT_S, RESIDENT_MIB

    targets = {name: load(name) for name in results["targets"]}
    intro = _INTRO.format(input_s=INPUT_S, rss=RESIDENT_MIB)
    parts = [intro, _targets(targets), _figures(results, targets), _findings(), _LEFT_OUT]
    return wrapped("\n\n".join(parts)) + "\n"


def _targets(targets: dict[str, Target]) -> str:
    rows = [[f"`{name}`", target.reads, target.holds] for name, target in targets.items()]
    return "## Targets\n\n" + _text_table(
        ("target", "reads", "what holds, beside that nothing else is raised"), rows
    )


def _figures(results: Figures, targets: dict[str, Target]) -> str:
    rows = []
    for name, figures in results["targets"].items():
        reached, there = lines(targets[name])
        kept = inputs(targets[name])
        rows.append(
            [
                f"`{name}`",
                f"{figures['executions']:,}",
                f"{figures['seconds']:,.0f}",
                f"{figures['edges']:,}",
                f"{figures['features']:,}",
                f"{reached} of {there}",
                f"{len(kept)}",
                f"{figures['peak_rss_mib']}",
                "one" if figures["finding"] else "none",
            ]
        )
    header = (
        *("target", "executions", "seconds", "edges", "features"),
        *("lines", "inputs kept", "peak RSS, MiB", "new findings"),
    )
    here = results["machine"]
    total = sum(figures["executions"] for figures in results["targets"].values())
    text = (
        f"Runs of the agent as it is now, on {here['cpus']} CPUs of an {here['cpu']}, Python {here['python']},"
        f" beside other work: {total:,} executions. *Edges* and *features* are libFuzzer's `cov` and `ft`, of the"
        " agent's modules that the target has imported and of libraries that parse in Python for it. *Lines*: of"
        " the bodies of functions in the modules that the target is about, those that its kept corpus reaches on"
        " the thread that it is given to; what needs a live kernel, a disk that fails or a second thread is not"
        " among them."
    )
    return f"## Figures\n\n{text}\n\n{table(header, rows)}"


def _findings() -> str:
    rows = [[f"`{one.target}`", one.was, f"`{one.held}`"] for one in FINDINGS]
    return "## Findings\n\n" + _text_table(("target", "what was wrong, and is mended", "held by"), rows)


def _text_table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines_ = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines_)


__all__ = ["HEAD", "Figures", "machine", "page", "row"]
