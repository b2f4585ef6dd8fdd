"""Builds the Debian package: the agent with its private environment, its units, its configuration.

    .venv/bin/python packaging/build_deb.py [--output dist] [--revision 1] [--wheel FILE | --tree FOLDER]

For the architecture and the Debian release that it runs on. The same commit gives the same bytes: times are the
commit's (or SOURCE_DATE_EPOCH), owners root, names sorted. Needs dpkg-deb, and the network for what is pinned.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from email.parser import HeaderParser
from email.utils import format_datetime
from pathlib import Path

import completion
import tree

DEB = tree.PACKAGING / "deb"
SYSTEMD = tree.ROOT / "systemd"
SCRIPTS = ("postinst", "prerm", "postrm")
CONFIGURATION = "etc/tailspan/tailspan.toml"
DOCUMENTS = Path("usr/share/doc/tailspan")
#: Where Debian looks for what systemd/ has, by suffix.
PLACES = {
    ".service": "lib/systemd/system/{name}",
    ".socket": "lib/systemd/system/{name}",
    ".sysusers": "usr/lib/sysusers.d/{stem}.conf",
    ".tmpfiles": "usr/lib/tmpfiles.d/{stem}.conf",
    ".toml": "etc/tailspan/{name}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--output", type=Path, default=tree.ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--revision", default="1", metavar="N", help="of the package, for one and the same agent")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--wheel", type=Path, metavar="FILE", help="of tailspan; default: built from this checkout")
    given.add_argument("--tree", type=Path, metavar="FOLDER", help="what tree.py laid out; default: laid out now")
    arguments = parser.parse_args()
    if sys.base_prefix != "/usr":
        parser.error(f"{sys.base_prefix} is not Debian's Python: the package is for the one that builds it")
    package = build(arguments.output, arguments.revision, arguments.wheel, arguments.tree)
    print(f"{package}: {package.stat().st_size / 1e6:.1f} MB")


def build(output: Path, revision: str, wheel: Path | None, laid_out: Path | None) -> Path:
    """The package's path. Raises ``CalledProcessError`` where pip or dpkg-deb fail; they have said why."""
    os.environ["SOURCE_DATE_EPOCH"] = str(date := source_date())  # for the wheel and for dpkg-deb too
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tailspan-deb-") as place:
        folder = Path(place) / "tailspan"
        if laid_out:
            shutil.copytree(laid_out, folder, symlinks=True)
        else:
            tree.build(folder, wheel)
        version = f"{agent_version(folder)}-{revision}"
        _add_service(folder)
        _add_documents(folder, version, date)
        _add_control(folder, version)
        _set_times(folder, date)
        package = output / f"tailspan_{version}_{architecture()}.deb"
        # zstd: a tenth of xz' time for a fifth more bytes; Debian 12 and Ubuntu unpack it.
        pack = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z10", "--threads-max=1"]
        subprocess.run([*pack, "--build", str(folder), str(package)], check=True, stdout=subprocess.DEVNULL)
    return package


def source_date() -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH, else of the commit, else of the changelog as a file."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    committed = ["git", "-C", str(tree.ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(committed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return int(done.stdout.strip() or (tree.ROOT / "CHANGELOG.md").stat().st_mtime)


def architecture() -> str:
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def agent_version(folder: Path) -> str:
    """As the agent says it; a release candidate, ``1.0rc1``, comes before its release: ``1.0~rc1``."""
    init = (folder / tree.PRIVATE / "site/tailspan/__init__.py").read_text()
    (found,) = re.findall(r'^__version__ = "(.+)"$', init, re.M)
    return re.sub(r"(?<=\d)\.?(a|b|rc|dev)(?=\d)", r"~\1", found)


def units() -> list[str]:
    """Those that are started and enabled, sockets first."""
    found = [path for kind in ("*.socket", "*.service") for path in sorted(SYSTEMD.glob(kind))]
    return [path.name for path in found if "[Install]" in path.read_text()]


def _add_service(folder: Path) -> None:
    for path in sorted(SYSTEMD.iterdir()):
        if place := PLACES.get(path.suffix):
            _write(folder / place.format(name=path.name, stem=path.stem), path.read_bytes())


def _add_documents(folder: Path, version: str, date: int) -> None:
    ours = (tree.ROOT / "CHANGELOG.md").read_bytes()
    when = format_datetime(datetime.fromtimestamp(date, UTC))
    facts = {"version": version, "date": when, "maintainer": _maintainer()}
    debians = (DEB / "changelog").read_text().format_map(facts).encode()
    for name, text in (("changelog.gz", ours), ("changelog.Debian.gz", debians)):
        _write(folder / DOCUMENTS / name, gzip.compress(text, mtime=0))
    bundled = sorted(map(_license_line, (folder / tree.PRIVATE / "site").glob("*.dist-info/METADATA")))
    _write(folder / DOCUMENTS / "copyright", ((DEB / "copyright").read_text() + "".join(bundled)).encode())
    script = completion.bash(folder / tree.PRIVATE / "site")
    _write(folder / "usr/share/bash-completion/completions/tailspan", script.encode())


def _maintainer() -> str:
    (found,) = re.findall(r"^Maintainer: (.+)$", (DEB / "control").read_text(), re.M)
    return str(found)


def _license_line(metadata: Path) -> str:
    said = HeaderParser().parsestr(metadata.read_text())
    classified = [text.rpartition(" :: ")[2] for text in said.get_all("Classifier", []) if "License" in text]
    license_ = said["License-Expression"] or (said["License"] or ", ".join(classified)).partition("\n")[0]
    return f" {said['Name']} {said['Version']}: {license_}\n"


def _add_control(folder: Path, version: str) -> None:
    """Last: it has the digests of all that is there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    digests = "".join(
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files
    )
    sizes = sum(-(-path.lstat().st_size // 1024) for path in folder.rglob("*"))
    minor = sys.version_info.minor
    facts = {
        "version": version,
        "architecture": architecture(),
        "installed_kib": str(sizes),
        "python": f"3.{minor}",
        "next_python": f"3.{minor + 1}",
    }
    _write(folder / "DEBIAN/control", (DEB / "control").read_text().format_map(facts).encode())
    _write(folder / "DEBIAN/conffiles", f"/{CONFIGURATION}\n".encode())
    _write(folder / "DEBIAN/md5sums", digests.encode())
    for name in SCRIPTS:
        _write(folder / "DEBIAN" / name, _filled((DEB / name).read_text(), {"UNITS": " ".join(units())}).encode())
        (folder / "DEBIAN" / name).chmod(0o755)


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: words[match[1]], text)


def _write(path: Path, content: bytes) -> None:
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in missing:
        parent.chmod(0o755)
    path.write_bytes(content)
    path.chmod(0o644)


def _set_times(folder: Path, date: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (date, date), follow_symlinks=False)


if __name__ == "__main__":
    main()
