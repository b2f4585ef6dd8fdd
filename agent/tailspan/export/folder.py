"""Folders of the store: the group reads what is in them, and nobody else."""

from __future__ import annotations

from pathlib import Path


def make(folder: Path) -> None:
    """And those above it, where they are not there; whatever the umask. Raises OSError."""
    if not folder.is_dir():
        if not folder.parent.exists():
            make(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o750)
