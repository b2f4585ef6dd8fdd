"""What tests of packages share, built once: the wheel, the tree that packages carry, the package."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging import root

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(pip, check=True)
    (built,) = folder.iterdir()
    return built


@dataclass(frozen=True, slots=True)
class Built:
    """The tree and the package are from builds that have nothing in common but the wheel."""

    tree: Path
    package: Path


@pytest.fixture(scope="session")
def built(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    if sys.base_prefix != "/usr":
        pytest.skip("packages are for the Python of this Debian, and this is another")
    tree, output = (tmp_path_factory.mktemp(name) for name in ("tree", "first"))

    def run(umask: int, program: str, *arguments: object) -> None:
        command = [sys.executable, PACKAGING / program, "--wheel", wheel, *map(str, arguments)]
        subprocess.run(command, cwd=tree, umask=umask, check=True)

    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(run, 0o077, "tree.py", tree),
            pool.submit(run, 0o022, "build_deb.py", "--output", output),
            pool.submit(root.make),
        ]
    for job in jobs:
        job.result()
    (package,) = output.iterdir()
    yield Built(tree, package)
    shutil.rmtree(tree)
