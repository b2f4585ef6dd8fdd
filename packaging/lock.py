"""Writes packaging/requirements.txt: what packages carry, each wheel by version and digest.

    .venv/bin/python packaging/lock.py

The newest that pyproject.toml allows, for the Python and the architecture that run this. A Debian package and an
image are made of these files alone; a wheel of ours names ranges and leaves the choice to pip.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "packaging" / "requirements.txt"

HEADER = """\
# Written by packaging/lock.py for Python {python} on {machine}. pip refuses a file of another digest.
"""


def main() -> None:
    lines = sorted(map(pin, resolved(dependencies())), key=str.lower)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    LOCK.write_text(HEADER.format(python=python, machine=machine) + "".join(lines))


def dependencies() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: list[str] = tomllib.load(file)["project"]["dependencies"]
    return found


def resolved(requirements: list[str]) -> list[dict[str, Any]]:
    """pip's own answer, nothing installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--quiet", "--report", "-", *requirements], stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return found


def pin(item: dict[str, Any]) -> str:
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    digest = item["download_info"]["archive_info"]["hash"].replace("=", ":")
    return f"{name}=={version} --hash={digest}\n"


if __name__ == "__main__":
    main()
