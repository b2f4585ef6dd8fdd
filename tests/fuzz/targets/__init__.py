"""One module a target; each has a ``TARGET``. In the order of the page."""

from __future__ import annotations

import importlib

from tests.fuzz.target import Target

NAMES = (
    "client_socket",
    "traceparent",
    "otlp_message",
    "otlp_http",
    "otlp_answer",
    "metrics_http",
    "control",
    "configuration",
    "evidence",
    "segment",
    "spool",
    "tally",
    "btf",
    "elf",
    "identity",
    "proc",
)


def load(name: str) -> Target:
    target: Target = importlib.import_module(f"{__name__}.{name}").TARGET
    return target
