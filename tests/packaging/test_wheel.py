"""The wheel is all of the agent: with its programs for the kernel, without its tests."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tailspan import __version__


def test_it_carries_the_compiled_programs_and_nothing_that_is_not_the_agents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        (entries,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        commands = packed.read(entries).decode()

    assert "tailspan/_bpf/tailspan.bpf.o" in names
    assert {name.partition("/")[0] for name in names} == {"tailspan", f"tailspan-{__version__}.dist-info"}
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]
    assert "tailspan = tailspan.cli:main" in commands


def test_it_is_of_one_architecture_and_any_python(wheel: Path) -> None:
    assert wheel.name.startswith(f"tailspan-{__version__}-py3-none-linux_")


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of an interpreter that finds the wheel's tailspan before the checkout's."""
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def test_it_runs_where_there_is_no_checkout(installed: dict[str, str], tmp_path: Path) -> None:
    where = "import tailspan; print(tailspan.__file__, tailspan.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", where], env=installed, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "site/tailspan/__init__.py"), __version__]


@pytest.mark.kernel
def test_its_programs_load(installed: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tailspan", "check", "--json"]
    done = subprocess.run(command, env=installed, cwd=tmp_path, capture_output=True, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["error"], report["missing"]) == (0, "", [])
