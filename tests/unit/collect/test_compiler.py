from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.collect.bpf import compiler
from tailspan.collect.bpf.bccobject import with_maps
from tailspan.collect.bpf.btf import Btf
from tailspan.collect.bpf.headers import Headers
from tailspan.collect.bpf.programs import OBJECT
from tailspan.errors import CannotError, ProbeError

SCHED = """\
struct other {
	bool throttled;
};

struct task_struct {
	unsigned int __state;
	union { /* nested ones do not end it */
		int a;
	};
#ifdef CONFIG_PSI
	unsigned in_memstall:1;
#endif
};
"""


def tree(folder: Path, kind: str, **files: str) -> Headers:
    for name, text in files.items():
        path = folder / "include" / name.replace("__", "/").replace("_h", ".h")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Headers(kind, folder, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("configured", "has"), [("#define CONFIG_PSI 1\n", True), ("#define CONFIG_PSI_X 1\n", False)]
)
def test_a_packages_field_is_there_if_it_is_declared_and_configured(
    tmp_path: Path, configured: str, has: bool
) -> None:
    found = tree(tmp_path, "package", linux__sched_h=SCHED, generated__autoconf_h=configured)

    assert compiler._has(found, "in_memstall", compiler._MEMBERS["in_memstall"]) is has
    assert not compiler._has(found, "throttled", compiler._MEMBERS["throttled"])
    assert not compiler._has(found, "throttle_count", compiler._MEMBERS["throttle_count"])


def test_a_stubs_field_is_there_if_it_is_declared(tmp_path: Path) -> None:
    found = tree(tmp_path, "btf", vmlinux_h=SCHED + "\nstruct cfs_rq {\n\tint throttle_count;\n};\n")

    has = {name for name, member in compiler._MEMBERS.items() if compiler._has(found, name, member)}
    assert has == {"in_memstall", "throttle_count"}


def test_helpers_that_an_older_kernel_lacks_are_defined(tmp_path: Path) -> None:
    text = "enum bpf_func_id {\n\tBPF_FUNC_kptr_xchg = 194,\n\tBPF_FUNC_dynptr_read = 201,\n};\n"
    flags = compiler.missing_helpers(tree(tmp_path / "stub", "btf", vmlinux_h=text))

    assert "-DBPF_FUNC_cgrp_storage_get=210" in flags
    assert not [flag for flag in flags if "kptr_xchg" in flag or "dynptr_read=" in flag]
    assert not compiler.missing_helpers(tree(tmp_path / "package", "package"))


def test_every_name_of_ours_that_a_kernel_may_have_too_is_known() -> None:
    names = set(compiler._own_names())

    assert {"thread_cycle", "socket_flags", "SOCKET_RESET", "conn", "PHASE_OPEN", "LEAVING", "asked"} <= names
    assert not names & {"task_struct", "sock", "pid", "ring"}


def test_knobs_are_those_of_the_compiled_object() -> None:
    knobs = compiler.default_knobs()

    known = Btf.of_object(OBJECT).variables(".rodata")
    assert set(knobs) == set(known) - {"call_shapes", "on_sys_exit.no_calls", "____on_sys_exit.no_calls"}
    assert knobs["short_wait_ns"] == 10_000


@given(st.lists(st.one_of(st.binary(min_size=8, max_size=8), st.integers(1, 3)), max_size=20))
def test_only_numbers_of_maps_become_descriptors(given_: list[bytes | int]) -> None:
    plain = [one if isinstance(one, int) or one[0] != 0x18 else b"\xb7" + one[1:] for one in given_]
    fds = {1: 101, 2: 102, 3: 2**31 - 1}

    def code(of: dict[int, int]) -> bytes:
        parts = (
            one if isinstance(one, bytes) else struct.pack("<BBhi8x", 0x18, 0x11, 0, of[one]) for one in plain
        )
        return b"".join(parts)

    assert with_maps(code({number: number for number in fds}), fds) == code(fds)


def test_programs_that_were_not_used_for_long_are_forgotten(tmp_path: Path) -> None:
    trees = [tmp_path / f"programs-{number}" for number in range(compiler._KEPT + 3)]
    for age, kept in enumerate(trees):
        kept.mkdir()
        os.utime(kept, (1_000_000 - age, 1_000_000 - age))
    stub = tmp_path / "btf-0123"
    stub.mkdir()

    compiler._forget_old(tmp_path, trees[-1])

    assert set(tmp_path.iterdir()) == {*trees[: compiler._KEPT - 1], trees[-1], stub}


def test_what_the_compiler_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "kept"))

    def ended(code: int, said: str) -> None:
        done = subprocess.CompletedProcess([], code, "", said)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

    ended(1, "warning: odd\nbcc.h:7:1: error: field not found\n1 error generated.\n")
    with pytest.raises(ProbeError, match=r"cannot compile the programs: bcc\.h:7:1: error: field not found"):
        compiler.compile_programs(["on_switch"], {})
    ended(3, "bcc for Python is not installed\n")
    with pytest.raises(CannotError, match=r"^bcc for Python is not installed$"):
        compiler.compile_programs(["on_switch"], {})
    assert list((tmp_path / "kept").iterdir()) == []
