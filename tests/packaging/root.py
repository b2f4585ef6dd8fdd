"""A clean Debian, as small as it comes with systemd and Python: no compiler, no kernel headers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: What a host has before the package comes. Its other dependencies lie in apt's cache: a machine has no network.
INCLUDED = ("systemd", "python3")
DOWNLOADED = ("libbpf1", "procps")
#: Made once, kept with the virtual environment.
TARBALL = Path(sys.prefix) / f"debian-{'-'.join((*INCLUDED, *DOWNLOADED))}.tar"


def unpack(folder: Path) -> None:
    """Into an empty folder."""
    make()
    subprocess.run(["tar", "-xf", TARBALL, "-C", folder], check=True)


def make() -> None:
    """Unless it is there. Skips the test where it cannot be made, and fails it where all must be there."""
    if TARBALL.exists():
        return
    if not shutil.which("mmdebstrap"):
        why = "no mmdebstrap: `make deps` installs it"
        if os.environ.get("TAILSPAN_REQUIRE_KERNEL") == "1":
            pytest.fail(why)
        pytest.skip(why)
    part = TARBALL.with_suffix(".part.tar")
    download = (
        f'chroot "$1" apt-get clean && chroot "$1" apt-get install -qy --download-only {" ".join(DOWNLOADED)}'
    )
    options = ["--variant=minbase", f"--include={','.join(INCLUDED)}", "--skip=cleanup/apt"]
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    done = subprocess.run(
        ["mmdebstrap", *options, f"--customize-hook={download}", release, part],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    part.rename(TARBALL)
