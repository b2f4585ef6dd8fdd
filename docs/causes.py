"""Writes causes.md beside this file from tailspan.attribute.causes: ``python docs/causes.py``."""

from __future__ import annotations

from pathlib import Path

from tailspan.attribute.causes import CAUSES, CauseInfo
from tailspan.export.semconv import cause_name

OUTPUT = Path(__file__).with_name("causes.md")

HEAD = """\
<!-- Written by docs/causes.py from agent/tailspan/attribute/causes.py. Change that. -->

# Causes

Every nanosecond of a request has exactly one of these. A cause is named for being larger than it is in like
requests, and only if it explains at least a quarter of what is above normal, and at least 1 ms. How each is
proved: `make scorecard` injects them one by one and compares.
"""


def built() -> str:
    ordered = sorted(CAUSES.items(), key=lambda item: item[1].label)
    table = ["| cause | name in JSON and metrics | accuses |", "|---|---|---|"]
    for cause, info in ordered:
        link = info.label.replace(":", "").replace(" ", "-")
        table.append(
            f"| [{info.label}](#{link}) | `{cause_name(cause)}` | {'yes' if info.accuses else 'nobody'} |"
        )
    return "\n".join([HEAD, *table, "", *(section(info) for _, info in ordered)])


def section(info: CauseInfo) -> str:
    probe = {
        "": "none",
        "client": "the worker's client",
        "nvml": "an NVIDIA driver, read through NVML",
        "sampling": "none; /proc is sampled",
    }
    return f"""\
## {info.label}

{info.words[0].upper()}{info.words[1:]}.

- **Evidence**: {info.evidence}
- **May wrongly include**: {info.bias}.
- **Needs**: {probe.get(info.probe, f"probe `{info.probe}`")}.
- **What to do**: {info.action}
"""


if __name__ == "__main__":
    OUTPUT.write_text(built())
