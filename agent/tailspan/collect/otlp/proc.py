"""Who holds a TCP connection's other end, by /proc: for a kernel whose iterators cannot be had.

Sees processes of this network namespace whose files this process may look at; without CAP_SYS_PTRACE those of its
own user. Ids are those that /proc has, which are the host's where the agent is in the host's pid namespace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

Ids = tuple[int, int, int]  #: tgid, the same in its own pid namespace, effective uid

PROC = Path("/proc")


def holders(address: bytes, port: int, own_port: int) -> list[Ids]:
    """Oldest first. ``address``: 16 bytes, IPv4 mapped."""
    names = {f"socket:[{inode}]" for inode in _inodes(address, port, own_port)}
    found = [ids for ids in processes() if _holds(PROC / str(ids[0]) / "fd", names)] if names else []
    return sorted(found, key=lambda ids: _started(PROC / str(ids[0])))


def processes() -> Iterator[Ids]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                lines = _lines(entry / "status")
            except OSError:  # it has ended
                continue
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            yield int(entry.name), int(fields["NStgid"].split()[-1]), int(fields["Uid"].split()[1])


def _inodes(address: bytes, port: int, own_port: int) -> Iterator[str]:
    """Of the sockets that are at this address and port, and connected to ours."""
    addresses = [address]
    if address.startswith(bytes(10) + b"\xff\xff"):
        addresses.append(address[12:])
    wanted = {f"{_hex(one)}:{port:04X}" for one in addresses}
    for name in ("tcp", "tcp6"):
        try:
            lines = _lines(PROC / "net" / name)[1:]
        except OSError:  # a kernel without IPv6
            continue
        for line in lines:
            _, local, remote, *rest = line.split()
            if local in wanted and remote.endswith(f":{own_port:04X}"):
                yield rest[6]


def _hex(address: bytes) -> str:
    """As /proc/net writes it: words of four bytes, each in the host's order."""
    step = -1 if sys.byteorder == "little" else 1
    return b"".join(address[at : at + 4][::step] for at in range(0, len(address), 4)).hex().upper()


def _holds(files: Path, names: set[str]) -> bool:
    try:
        entries = list(files.iterdir())
    except OSError:  # it has ended, or is not ours to look at
        return False
    return any(_target(entry) in names for entry in entries)


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # it is closed by now
        return ""


def _started(process: Path) -> int:
    try:
        return int((process / "stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError:
        return sys.maxsize


def _lines(file: Path) -> list[str]:
    """As the kernel divides them: anybody may give a process a name, of any bytes, with other ends of lines."""
    return file.read_bytes().decode(errors="replace").rstrip("\n").split("\n")
