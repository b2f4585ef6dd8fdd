"""Builds the fakes with the C compiler, once a change."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
#: In the virtual environment's neighbourhood, ignored by git.
OUT = HERE / "build"


def library(source: str, soname: str) -> Path:
    """The folder that holds ``soname``, built from ``source`` of this folder; for LD_LIBRARY_PATH."""
    out = OUT / soname.split(".")[0]
    out.mkdir(parents=True, exist_ok=True)
    _compile(out / soname, [source], "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-ldl")
    return out


def program(source: str, *flags: str) -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    return _compile(OUT / Path(source).stem, [source], *flags)


def _compile(target: Path, sources: list[str], *flags: str) -> Path:
    inputs = [*(HERE / source for source in sources), *HERE.glob("*.h")]
    if target.exists() and all(target.stat().st_mtime > path.stat().st_mtime for path in inputs):
        return target
    compiler = shutil.which("clang") or shutil.which("cc")
    assert compiler, "make test installs clang"
    part = target.with_suffix(f".{os.getpid()}.part")
    command = [compiler, "-O2", "-g", "-Wall", "-Wextra", "-Werror", *(str(HERE / source) for source in sources)]
    subprocess.run([*command, "-o", str(part), "-lpthread", *flags], check=True)
    part.replace(target)
    return target
