"""Debian's packages, fetched and unpacked where nothing else sees them: stock kernels, and what boots them.

apt gets a root of its own (sources, lists, cache). Of the machine it takes the mirror, the keys, and what is
installed, so that only the libraries that are missing are fetched. Nothing is installed.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Survives runs; ``make clean`` takes it away.
FOLDER = Path(sys.prefix) / "kernels"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FETCH_S = 300
#: Debian 12's own QEMU (7.2) crashes one guest in ten where a kernel patches its static keys.
_EMULATOR_SUITE = "bookworm-backports"


class UnavailableError(Exception):
    """What cannot be fetched, and why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of Debian's for virtual machines: the newest that ``suite`` has of it."""

    series: str  #: as people say it; also the name of its folder
    suite: str
    package: str = "linux-image-cloud-amd64"

    @property
    def folder(self) -> Path:
        return FOLDER / self.series


#: Another kernel is another row; a series that left its suite says so when it is fetched.
KERNELS = (
    Kernel("6.1", "bookworm"),
    Kernel("6.12", "trixie"),
    Kernel("7.3", "trixie-backports"),
)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A kernel on disk."""

    release: str  #: as ``uname -r`` says it
    version: str  #: Debian's
    image: Path
    modules: Path  #: the folder lib/modules


@dataclass(frozen=True, slots=True)
class Tools:
    """What boots a guest."""

    root: Path

    @property
    def qemu(self) -> Path:
        return self.root / "usr/bin/qemu-system-x86_64"

    @property
    def virtiofsd(self) -> Path:
        return self.root / "virtiofsd/usr/lib/qemu/virtiofsd"

    @property
    def busybox(self) -> Path:
        return self.root / "bin/busybox"

    @property
    def firmware(self) -> tuple[Path, ...]:
        return (self.root / "usr/share/qemu", self.root / "usr/share/seabios")

    @property
    def environment(self) -> dict[str, str]:
        libraries = (self.root / "usr/lib/x86_64-linux-gnu", self.root / "lib/x86_64-linux-gnu")
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}


def kernel(series: str) -> Kernel:
    return next(kernel for kernel in KERNELS if kernel.series == series)


def tools() -> Tools:
    def unpack(into: Path) -> None:
        apt = _Apt("bookworm", _EMULATOR_SUITE)
        apt.unpack_with_dependencies(into, _EMULATOR_SUITE, "qemu-system-x86", "busybox-static")
        # The daemon that shares folders left QEMU's packages after 7.2.
        apt.unpack(into / "virtiofsd", "qemu-system-common/bookworm")

    return Tools(_kept("tools", unpack))


def unpacked(kernel: Kernel) -> Unpacked:
    """Fetched when it is not there yet. Raises :class:`UnavailableError`."""

    def unpack(into: Path) -> None:
        apt = _Apt(kernel.suite)
        image = apt.kernel_of(kernel.package)
        if not image.startswith(f"linux-image-{kernel.series}."):
            raise UnavailableError(f"{kernel.suite} has {image} and no kernel {kernel.series}")
        release = image.removeprefix("linux-image-")
        apt.unpack(into, image, *(name for name in apt.depends(image) if name.endswith(release)))
        (into / "version").write_text(apt.field(image, "Version"))
        if (into / "usr/lib/modules").exists():  # from Debian 13 on
            (into / "lib").symlink_to("usr/lib")
        _run([str(tools().busybox), "depmod", "-b", str(into), release])

    root = _kept(kernel.series, unpack)
    release = next((root / "lib/modules").iterdir()).name
    image = next(path for path in root.rglob("vmlinuz*") if path.is_file())
    return Unpacked(release, (root / "version").read_text(), image, root / "lib/modules")


def headers(kernel: Kernel) -> Path:
    """Its headers, as Debian's two packages lay them out: a folder to be seen as /usr/src. They are linked from
    its modules, as on a machine that has both installed."""

    def unpack(into: Path) -> None:
        apt, release = _Apt(kernel.suite), unpacked(kernel).release
        name = f"linux-headers-{release}"
        apt.unpack(into, name, *(name for name in apt.depends(name) if re.fullmatch(r"linux-.*-common", name)))
        for link in into.glob(f"**/lib/modules/{release}/*"):
            place = unpacked(kernel).modules / release / link.name
            place.unlink(missing_ok=True)
            place.symlink_to(link.readlink())

    return _kept(f"{kernel.series}-headers", unpack) / "usr/src"


def _kept(name: str, unpack: Callable[[Path], None]) -> Path:
    """The folder of this name, made by ``unpack`` when it is not there; whole or not at all."""
    folder = FOLDER / name
    if folder.exists():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _alone(name):
        part = folder.with_suffix(".part")
        if not folder.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            unpack(part)
            part.rename(folder)
    return folder


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Two runs at once fetch once."""
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Apt:
    """apt over some suites, in a root of its own."""

    def __init__(self, *suites: str) -> None:
        self._root = FOLDER / "apt" / "+".join(suites)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (self._root / part).mkdir(parents=True, exist_ok=True)
        mirror = _mirror()
        sources = "".join(f"deb [signed-by={_KEYS}] {mirror} {suite} main\n" for suite in suites)
        (self._root / "sources.list").write_text(sources)
        self._apt("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")

    def kernel_of(self, package: str) -> str:
        """The image that a package for "the newest" stands for today."""
        found = [name for name in self.depends(package) if re.match(r"linux-image-\d", name)]
        if len(found) != 1:
            raise UnavailableError(f"package {package} stands for no kernel, but for {found}")
        return found[0]

    def depends(self, package: str) -> list[str]:
        return re.findall(r"(?:^|, )([^ ,]+)", self.field(package, "Depends"))

    def field(self, package: str, name: str) -> str:
        said = self._apt("apt-cache", "show", "--no-all-versions", package)
        found = re.search(rf"^{name}: (.*)$", said, re.M)
        return found[1] if found else ""

    def unpack(self, into: Path, *packages: str) -> None:
        """Only these."""
        into.mkdir(parents=True, exist_ok=True)
        self._empty()
        self._apt("apt-get", "download", "-q", *packages, folder=self._archives)
        self._extract(into)

    def unpack_with_dependencies(self, into: Path, suite: str, *packages: str) -> None:
        """These and what of theirs is not installed here."""
        self._empty()
        options = ("-q", "-y", "--download-only", "--no-install-recommends", "-t", suite)
        self._apt("apt-get", "install", *options, *packages)
        self._extract(into)

    @property
    def _archives(self) -> Path:
        return self._root / "cache/archives"

    def _empty(self) -> None:
        for package in self._archives.glob("*.deb"):
            package.unlink()

    def _extract(self, into: Path) -> None:
        for package in sorted(self._archives.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(into)])
        self._empty()

    def _apt(self, program: str, *arguments: str, folder: Path | None = None) -> str:
        own = {
            "Dir::Etc::sourcelist": self._root / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State": self._root / "state",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": self._root / "cache",
            "APT::Sandbox::User": "root",
        }
        options = [part for name, value in own.items() for part in ("-o", f"{name}={value}")]
        return _run([program, *options, *arguments], folder)


def _mirror() -> str:
    """Where this machine's apt fetches Debian from."""
    own = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    line = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    for target in _run(["apt-get", "indextargets", "--format", line, "Created-By: Packages"]).splitlines():
        release, component, uri = target.split()
        if (release, component) == (own, "main"):
            return uri
    raise UnavailableError(f"this machine's apt sources name no Debian archive with {own or 'its release'}")


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise UnavailableError(f"{' '.join(command[:1] + command[-3:])}: {done.stderr.strip()[-500:]}")
    return done.stdout
