"""The agent with all it needs, as files below one folder: what the Debian package and the container image carry.

    .venv/bin/python packaging/tree.py FOLDER [--wheel FILE]

    FOLDER/usr/bin/tailspan             the command
    FOLDER/usr/lib/tailspan/site/       the agent and its dependencies, as packaging/requirements.txt pins them
    FOLDER/usr/lib/tailspan/client/     for the PYTHONPATH of workers on this host: tailspan.client, msgpack

The same sources, pins and Python give the same bytes. Nothing is compiled on the host, byte code included.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGING = Path(__file__).resolve().parent
ROOT = PACKAGING.parent
PRIVATE = Path("usr/lib/tailspan")

#: In no wheel does the agent run these: tests, headers and libraries to link against, stubs for type checkers.
USELESS = ("**/tests", "**/*.pyi", "**/*.pxd", "**/*.a", "**/*.[cfh]", "**/*.proto", "numpy/_core/include")
TOOLS = ("numpy/distutils", "numpy/f2py", "numpy/_pyinstaller", "numpy/_configtool.py")
#: What pip notes of an installation: where the wheel lay, and digests of files that have gone.
NOTES = ("*.dist-info/RECORD", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED", "*.dist-info/direct_url.json")

#: What tailspan.client imports, besides the standard library.
CLIENT = ("tailspan", "msgpack")


def main() -> None:
    parser = argparse.ArgumentParser(description="Lay out the agent as packages carry it.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="of tailspan; default: built from this checkout"
    )
    arguments = parser.parse_args()
    build(arguments.folder, arguments.wheel)


def build(folder: Path, wheel: Path | None = None) -> None:
    """Fill ``folder``; raises ``CalledProcessError`` where pip cannot get what is pinned."""
    site = folder / PRIVATE / "site"
    with tempfile.TemporaryDirectory() as built:
        _install(site, wheel or build_wheel(Path(built)))
    for pattern in (*USELESS, *TOOLS, *NOTES):
        for path in sorted(site.glob(pattern)):
            _remove(path)
    _compile(folder)
    client = folder / PRIVATE / "client"
    client.mkdir()
    for name in CLIENT:
        (client / name).symlink_to(Path("..", "site", name))
    (folder / "usr/bin").mkdir(parents=True)
    shutil.copy(PACKAGING / "tailspan", folder / "usr/bin/tailspan")
    _set_modes(folder)


def build_wheel(folder: Path) -> Path:
    """Of this checkout."""
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("tailspan-*.whl")
    return wheel


def _install(site: Path, wheel: Path) -> None:
    into = ("install", "--target", str(site), "--no-deps", "--no-compile")
    pinned = ("--require-hashes", "--only-binary", ":all:", "--requirement", str(PACKAGING / "requirements.txt"))
    for what in (pinned, ("--no-index", str(wheel))):
        _pip(*into, *what)
        shutil.rmtree(site / "bin", ignore_errors=True)


def _pip(command: str, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*pip, command, *arguments], check=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _compile(folder: Path) -> None:
    """Byte code that names the files' final places, and that no change of a file's time puts out of date."""
    places = ("-s", str(folder), "-p", "/", "--invalidation-mode", "unchecked-hash")
    command = [sys.executable, "-I", "-m", "compileall", "-q", "-j", "0", *places, str(folder / PRIVATE / "site")]
    subprocess.run(command, check=True)


def _set_modes(folder: Path) -> None:
    """Whatever the umask of who builds, and whatever modes a wheel's files have."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)


if __name__ == "__main__":
    main()
