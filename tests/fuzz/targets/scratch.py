"""Folders for what reads files, made once a process."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path


@functools.cache
def _made(pid: int, name: str) -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    holder = tempfile.TemporaryDirectory(prefix=f"{name}-")
    return Path(holder.name), holder


def folder(name: str) -> Path:
    """Of this process: a fork has its own. Gone when it ends as Python does."""
    return _made(os.getpid(), name)[0]
