"""A tree of kernel headers that bcc can compile on: the running kernel's own, or a stub made from its BTF.

bcc's compiler runs in one folder, named by ``BCC_KERNEL_SOURCE``, and wants ``include/linux/kconfig.h`` and a few
more headers in it. A host rarely has them. The kernel's BTF has every type, so the stub is one ``vmlinux.h`` and
empty files for what bcc itself includes; a program of ours asks ``#ifndef __VMLINUX_H__`` before it includes more.

What is compiled here is loaded into the kernel, so only root and the caller's user may be able to write it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tailspan.collect.bpf import btf
from tailspan.collect.bpf.libbpf import library
from tailspan.errors import CannotError

MODULES = Path("/lib/modules")
#: Where Debian and its kin keep Python modules that no virtual environment sees.
PACKAGES = Path("/usr/lib/python3/dist-packages")

#: What bcc's own helpers include; in a stub they are empty, since vmlinux.h has come first.
_INCLUDED_BY_BCC = (
    "asm/page.h",
    "linux/bpf_common.h",
    "linux/log2.h",
    "linux/types.h",
    "linux/version.h",
    "uapi/linux/bpf.h",
    "uapi/linux/if_ether.h",
    "uapi/linux/if_packet.h",
    "uapi/linux/ptrace.h",
)
#: Included before all else. Macros are not in BTF: these are what bcc's helpers use. The guards keep bcc's copy of
#: bpf.h out, whose types vmlinux.h has too.
_KCONFIG = """\
#define LINUX_VERSION_CODE {version}
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define CONFIG_BPF_SYSCALL 1
{architecture}
#define NULL ((void *)0)
#define PAGE_SIZE {page}
#define MAX_ERRNO 4095
#define __user
#define __kernel
#define __always_inline inline __attribute__((always_inline))
#define roundup_pow_of_two(n) ((n) < 2 ? 1 : 1UL << (64 - __builtin_clzl(((n) - 1) | 1)))
#include "vmlinux.h"
#define _UAPI__LINUX_BPF_H__
#define __LINUX_BPF_H__
#define __BPF_FUNC_MAPPER(FN)
"""
_ARCHITECTURES = {
    "x86_64": "#define CONFIG_X86 1\n#define CONFIG_X86_64 1\n#define CONFIG_ARCH_HAS_SYSCALL_WRAPPER 1",
    "aarch64": "#define CONFIG_ARM64 1\n#define CONFIG_ARCH_HAS_SYSCALL_WRAPPER 1",
}
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # name: (result, arguments...)
    "btf__new": (c_void_p, c_char_p, c_uint32),
    "btf__free": (None, c_void_p),
    "btf__type_cnt": (c_uint32, c_void_p),
    "btf_dump__new": (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "btf_dump__free": (None, c_void_p),
    "btf_dump__dump_type": (c_int, c_void_p, c_uint32),
}


@dataclass(frozen=True, slots=True)
class Headers:
    """``package``: the headers of the running kernel. ``btf``: a stub, with every type of the running kernel."""

    kind: Literal["package", "btf"]
    path: Path  #: of a folder, for ``BCC_KERNEL_SOURCE``
    why: str  #: one line: where it is from

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While open, bcc compiles on this tree. It changes the process's environment, and bcc while it compiles
        changes its working folder: no other thread may count on either."""
        before = os.environ.get("BCC_KERNEL_SOURCE")
        os.environ["BCC_KERNEL_SOURCE"] = str(self.path)
        try:
            yield
        finally:
            if before is None:
                del os.environ["BCC_KERNEL_SOURCE"]
            else:
                os.environ["BCC_KERNEL_SOURCE"] = before


def find(
    folder: Path,
    *,
    prefer: Literal["package", "btf"] = "btf",
    release: str | None = None,
    modules: Path = MODULES,
    vmlinux: Path = btf.VMLINUX,
) -> Headers:
    """The first of the two that this machine has, ``prefer`` first.

    BTF first because bcc brings a bpf.h of its own, and headers newer than that do not compile with it: of Debian
    12's bcc 0.26, those of 6.12 and 7.2 once a program includes net/sock.h. Only macros are missing from a stub.

    ``folder``: where a stub or a merged tree is kept for the next time, 3 MB; made if it is missing. ``release``
    and the paths after it are the running kernel's, unless told.

    Raises :class:`CannotError` where there is neither, and where others than root and the caller's user could
    write ``folder``.
    """
    release = release or platform.release()
    own = _own_headers(modules / release)
    distrusted = next(filter(None, (_why_distrusted(tree) for tree in own)), "")
    if own and not distrusted and (prefer == "package" or not vmlinux.exists()):
        why = " and ".join(map(str, own))
        if len(own) == 1:
            return Headers("package", own[0], why)
        return Headers("package", _merged(folder, own), f"{why}, merged")
    if vmlinux.exists():
        return Headers("btf", _stub(folder, vmlinux, release), f"made from {vmlinux}")
    if distrusted:
        raise CannotError(f"the kernel headers in {own[-1]} are not used: {distrusted}")
    raise CannotError(
        f"no headers of kernel {release} in {modules / release}/build, and no BTF at {vmlinux} to make them "
        f"from: apt-get install linux-headers-{release} (dnf install kernel-devel)"
    )


def import_bcc() -> Any:
    """The module ``bcc``. Costs 70 MB of memory and a quarter of a second, so only who needs it calls this.

    It is Debian's, and pure Python, so it is taken from where Debian has it whatever interpreter this is; PyPI's
    distribution of that name is something else. Raises :class:`CannotError`, with what to install.
    """
    if "bcc" in sys.modules:
        return sys.modules["bcc"]
    found = importlib.machinery.PathFinder.find_spec("bcc", [str(PACKAGES), *sys.path])
    if found is None or found.loader is None:
        raise CannotError("bcc for Python is not installed: apt-get install python3-bpfcc (dnf: python3-bcc)")
    module = importlib.util.module_from_spec(found)
    sys.modules["bcc"] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer interpreters complain of its escape sequences
            found.loader.exec_module(module)
        if not hasattr(module, "BPF"):
            raise ImportError(f"{found.origin} is something else")
    except (ImportError, OSError, AttributeError) as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "bcc"]:
            del sys.modules[name]
        raise CannotError(f"bcc cannot be used: {error}: apt-get install python3-bpfcc libbpfcc") from None
    return module


def _own_headers(modules: Path) -> list[Path]:
    """One complete tree; or two, where a distribution splits them; or none. Found by what bcc needs in them."""
    build, source = modules / "build", modules / "source"
    generated = Path("include/generated/autoconf.h")
    if not (build / generated).exists():
        return []
    trees = [build, source, *_included_trees(build / "Makefile")]
    whole = [tree.resolve() for tree in trees if (tree / "include/linux/kconfig.h").exists()]
    if not whole:
        return []
    return [build.resolve()] if whole[0] == build.resolve() else [build.resolve(), whole[0]]


def _included_trees(makefile: Path) -> list[Path]:
    """Debian's generated tree names the common one in the Makefile that it is all about."""
    try:
        text = makefile.read_text(errors="replace")[:65536]
    except OSError:
        return []
    return [Path(path).parent for path in re.findall(r"^include\s+(/\S+/Makefile)\s*$", text, re.M)]


def _merged(folder: Path, trees: list[Path]) -> Path:
    """One tree of links into several, for bcc compiles in one folder. The first tree that has a file gives it."""
    links = dict(_links(trees, Path()))
    key = hashlib.sha256(repr(sorted(links.items())).encode()).hexdigest()[:16]

    def write(tree: Path) -> None:
        for place, target in links.items():
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            (tree / place).symlink_to(target)

    return kept(folder, f"merged-{key}", write)


def _links(trees: list[Path], at: Path) -> Iterator[tuple[Path, Path]]:
    """(place in the merged tree, what it links to): a folder is opened up only where several trees have it."""
    names = sorted({entry.name for tree in trees for entry in (tree / at).iterdir()})
    for name in names:
        holding = [tree for tree in trees if (tree / at / name).exists()]
        folders = [tree for tree in holding if (tree / at / name).is_dir()]
        if len(folders) > 1:
            yield from _links(folders, at / name)
        elif holding:
            yield at / name, holding[0] / at / name


def _stub(folder: Path, vmlinux: Path, release: str) -> Path:
    try:
        blob = vmlinux.read_bytes()
    except OSError as error:
        raise CannotError(f"cannot read {vmlinux}: {error.strerror}") from None
    kconfig = _kconfig(release)
    key = hashlib.sha256(blob + repr((kconfig, _INCLUDED_BY_BCC)).encode()).hexdigest()[:16]

    def write(tree: Path) -> None:
        for name in _INCLUDED_BY_BCC:
            (tree / "include" / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / "include" / name).touch()
        (tree / "include/linux/kconfig.h").write_text(kconfig)
        write_types(blob, tree / "include/vmlinux.h")

    return kept(folder, f"btf-{key}", write)


def _kconfig(release: str) -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise CannotError(f"no headers can be made from BTF on {machine}, only on {', '.join(_ARCHITECTURES)}")
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if not numbers:
        raise CannotError(f"kernel release {release!r} has no version in it")
    major, minor, patch = (int(number or 0) for number in numbers.groups())
    return _KCONFIG.format(
        version=(major << 16) + (minor << 8) + min(patch, 255),
        architecture=_ARCHITECTURES[machine],
        page=os.sysconf("SC_PAGESIZE"),
    )


def write_types(blob: bytes, path: Path) -> None:
    """Every type of a BTF blob as C. Raises :class:`CannotError` where the bytes are no BTF or the disk is full.

    libbpf prints by a function with the signature of vfprintf(3): so it is given that one, and no call comes back
    into Python for any of the 130,000 lines.
    """
    dll, libc = library().dll, ctypes.CDLL(None, use_errno=True)
    for name, (result, *arguments) in _SIGNATURES.items():
        getattr(dll, name).restype, getattr(dll, name).argtypes = result, arguments
    libc.fopen.restype, libc.fopen.argtypes = c_void_p, (c_char_p, c_char_p)
    libc.fwrite.restype, libc.fwrite.argtypes = c_size_t, (c_char_p, c_size_t, c_size_t, c_void_p)
    libc.ferror.argtypes = libc.fclose.argtypes = (c_void_p,)
    types = dll.btf__new(blob, len(blob))
    if not types:
        raise CannotError(f"the kernel's BTF is not readable: {os.strerror(ctypes.get_errno())}")
    file = libc.fopen(os.fsencode(path), b"wx")
    if not file:
        code = ctypes.get_errno()
        dll.btf__free(types)
        raise CannotError(f"cannot write {path}: {os.strerror(code)}")
    dump = dll.btf_dump__new(types, ctypes.cast(libc.vfprintf, c_void_p), file, None)
    try:
        text = b"#ifndef __VMLINUX_H__\n#define __VMLINUX_H__\n"
        libc.fwrite(text, 1, len(text), file)
        for index in range(1, dll.btf__type_cnt(types) if dump else 0):
            if dll.btf_dump__dump_type(dump, index):
                raise CannotError(f"the kernel's BTF is not readable: libbpf cannot print type {index}")
        libc.fwrite(b"#endif\n", 1, 7, file)
    finally:
        if dump:
            dll.btf_dump__free(dump)
        dll.btf__free(types)
        failed = libc.ferror(file)
        if libc.fclose(file) or failed or not dump:
            raise CannotError(f"cannot write {path}: {os.strerror(ctypes.get_errno())}")


def kept(folder: Path, name: str, write: Callable[[Path], None]) -> Path:
    """``folder/name``, written by ``write`` if it is not there: whole or not at all, also by several at once."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotError(f"cannot make {folder} for kernel headers: {error.strerror}") from None
    folder = folder.resolve()
    _require_trusted(folder)
    tree = folder / name
    if not tree.exists():
        _write_whole(folder, tree, write)
    _require_trusted(tree)
    return tree


def _write_whole(folder: Path, tree: Path, write: Callable[[Path], None]) -> None:
    try:
        part = Path(tempfile.mkdtemp(dir=folder, prefix=f".{tree.name}-"))
    except OSError as error:
        raise CannotError(f"cannot write kernel headers to {folder}: {error.strerror}") from None
    try:
        write(part)
        for file in [part, *part.rglob("*")]:
            if not file.is_symlink():
                file.chmod(0o755 if file.is_dir() else 0o644)
        with contextlib.suppress(FileExistsError):  # ENOTEMPTY too: another process was first, with the same bytes
            part.rename(tree)
    except OSError as error:
        if not tree.exists():
            raise CannotError(f"cannot write kernel headers to {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _require_trusted(folder: Path) -> None:
    if why := _why_distrusted(folder):
        raise CannotError(f"{folder} is not used for kernel headers: {why}")


def _why_distrusted(folder: Path) -> str:
    """Who else could have put headers there, or another folder in its place; "" if nobody."""
    for place in (folder, *folder.parents):
        about = place.stat()
        if about.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to user {about.st_uid}"
        others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if others and (place == folder or not about.st_mode & stat.S_ISVTX):
            return f"others may write {place}: chmod go-w {place}"
    return ""
