"""What fuzzing has found, in words, and the test that holds each; docs/fuzz.md has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Finding:
    target: str
    was: str  #: what happened, and to whom
    held: str  #: ``file::test``


FINDINGS = (
    Finding(
        "control",
        "A request of a thousand brackets ended the agent: its JSON is deeper than Python recurses, and that "
        "is no ValueError. Whoever may connect could send it.",
        "tests/unit/test_foreign_text.py::test_a_request_of_many_brackets_is_answered",
    ),
    Finding(
        "configuration",
        "A whole number of 400 digits, in TOML, a variable or a flag, ended `read` with an OverflowError "
        "instead of a problem with its place; one of 5,000 hexadecimal digits with a ValueError, as Python "
        "does not print it.",
        "tests/unit/test_foreign_text.py::test_a_number_of_any_length_is_a_problem_with_its_place",
    ),
    Finding(
        "proc",
        "A process whose name is no UTF-8, such as one cut after 15 bytes within an `é`, made the receiver "
        "refuse all OTLP where /proc stands in for BPF: one line of one process's `status` was read as text.",
        "tests/unit/collect/test_otlp_proc.py::test_a_process_may_be_called_anything",
    ),
    Finding(
        "proc",
        "A mount point with a byte that is no UTF-8, or with one that ends a line in Python's text and not in "
        "the kernel's (U+2028, form feed), kept the agent from starting: any user who may mount FUSE can make "
        "one.",
        "tests/unit/test_foreign_text.py::test_a_mount_point_may_be_called_anything",
    ),
    Finding(
        "proc",
        "A cgroup whose name has such an end of a line was two: a process could be in a second cgroup of its "
        "choice, and be followed as part of it.",
        "tests/unit/test_foreign_text.py::test_a_cgroups_name_is_one_path",
    ),
    Finding(
        "btf",
        "A struct that holds itself ended in a RecursionError; twenty structs of which each has two of the "
        "next took a minute, and forty would not end. Now each type is made once, and depth is bounded.",
        "tests/unit/collect/test_btf.py::test_types_without_end_are_refused_at_once",
    ),
    Finding(
        "btf",
        "An object whose section table lies beyond 2^63 raised OverflowError, not CannotError.",
        "tests/unit/collect/test_btf.py::test_an_object_that_contradicts_itself_is_not_readable",
    ),
    Finding(
        "spool",
        "A mark with a true checksum that says more was taken than was ever put in, or counts above 2^62, "
        "made a batch that was put in later vanish (counted as damaged). Such a mark is damaged now, and what "
        "waits is sent.",
        "tests/unit/export/test_spool.py::test_a_mark_that_cannot_be_costs_no_batch",
    ),
    Finding(
        "evidence",
        "Found by reading for the invariant, not by a run: each table was bounded, and all together were not. "
        "Rows of one byte in seventeen tables took 4 GB when read, from a file of kilobytes.",
        "tests/unit/export/test_payload.py::test_tables_are_bounded_together",
    ),
    Finding(
        "otlp_answer",
        "A `Retry-After` with a year or a zone of eleven digits raised OverflowError in the thread that sends. "
        "What is around it caught that, and took the backend's answer for an unexpected failure.",
        "tests/unit/test_foreign_text.py::test_a_backend_may_name_any_date",
    ),
    Finding(
        "otlp_http",
        "A POST that calls itself HTTP/0.9 was forwarded, and answered without a head: with nothing. Its sender "
        "could not tell, and would send it again. It is refused, and every answer has a head.",
        "tests/unit/collect/test_otlp_servers.py::test_what_is_no_request_of_http_is_refused",
    ),
)
