"""A stock kernel in an emulated machine, with this machine's root file system under it.

Whatever a script does there, it does to memory: the root is shared read-only, with a layer of memory over it
(what is mounted below it is not there, so the repository must be part of it). Only its results folder is this
machine's own. ``/var/tmp`` is a disk (ext4), cgroup v2 has all its controllers. There is no network but the
loopback. Everything takes about ten times as long as on hardware.
"""

from __future__ import annotations

import contextlib
import lzma
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.kernels import archive
from tests.kernels.archive import Tools, Unpacked

_MEMORY_MIB = 2048
_CPUS = 2
_DISK_MIB = 256
#: A panic with its trace has some fifty.
_LAST_LINES = 100
#: QEMU may trap a kernel that patches its own code while it boots (an int3 oops; once in some thirty boots).
_BOOTS = 3
#: Needed before the guest can load any itself; what they depend on is found.
_MODULES = ("virtio_pci", "virtiofs", "virtio_blk", "crc32c_generic", "ext4", "overlay")
_REPOSITORY = Path(__file__).parents[1]

#: However we end, by SIGKILL too.
_ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")

#: Shares the root read-only, with the results folder writable in it, in a mount namespace that nobody else sees.
_SHARE = """
set -e
root=$1 results=$2; shift 2
mount --bind / "$root"
mount -o remount,bind,ro "$root"
mount --bind "$results" "$root/mnt"
exec "$@"
"""

_INIT = """#!/busybox sh
PATH=/bin
/busybox mkdir -p /bin /proc /sys /dev /host /memory /root
/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "cannot load $module"; done
mount -t virtiofs host /host || poweroff -f
mount -t tmpfs memory /memory; mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root || poweroff -f
for place in run tmp; do mount -t tmpfs $place /root/$place; done; chmod 1777 /root/tmp
mount -t ext4 /dev/vda /root/var/tmp || poweroff -f
mkdir -p /root/lib/modules
mount --bind /host{modules} /root/lib/modules
[ -z "{headers}" ] || mount --bind /host{headers} /root/usr/src
mkdir -p /root{results}; mount --bind /host/mnt /root{results}
mkdir /root/run/guest; cp /busybox /root/run/guest/modprobe; echo /modprobe > /proc/sys/kernel/modprobe
for place in proc sys dev; do mount --move /$place /root/$place; done
mkdir -p /root/dev/pts /root/dev/shm /root/dev/net; mknod /root/dev/net/tun c 10 200
mount -t devpts pts /root/dev/pts; mount -t tmpfs shm /root/dev/shm
mount -t tracefs trace /root/sys/kernel/tracing; mount -t bpf bpf /root/sys/fs/bpf
mount -t cgroup2 cgroup /root/sys/fs/cgroup
for name in cpu memory io pids; do echo +$name > /root/sys/fs/cgroup/cgroup.subtree_control; done
ip link set lo up
cut -d ' ' -f 1 /root/proc/uptime > /root{results}/booted
chroot /root /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /bin/bash -c 'cd {repository} && . {results}/script' > /root{results}/output 2>&1 < /root/dev/null
echo $? > /root{results}/status
sync
poweroff -f
"""


#: The kernel runs this in the root that it was booted with, when somebody asks for what is in a module.
_MODPROBE = """#!/busybox sh
exec /busybox chroot /root /run/guest/modprobe "$@"
"""


class GuestError(Exception):
    """A guest did not come to the end of its script: it hung, or its kernel panicked. Carries its last words."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A script that came to its end."""

    status: int
    output: str  #: standard output and error, as they came
    boot_s: float  #: by the guest's clock, until the script began
    wall_s: float  #: all of it


class Guest:
    """Boots once per script. Raises :class:`archive.UnavailableError` where the kernel cannot be had."""

    def __init__(self, series: str, with_headers: bool = False) -> None:
        """``with_headers``: the kernel's own, where a machine has them that compiles modules."""
        wanted = archive.kernel(series)
        self.kernel = archive.unpacked(wanted)
        self._headers = archive.headers(wanted) if with_headers else None
        self._tools = archive.tools()

    def run(self, script: str, results: Path, timeout_s: float = 300) -> Ended:
        """Run a bash script as root in the repository. ``results``: a folder that it and we can write to."""
        began = time.monotonic()
        (results / "script").write_text(script)
        for leftover in ("status", "output", "booted"):
            (results / leftover).unlink(missing_ok=True)
        for _ in range(_BOOTS):
            left_s = began + timeout_s - time.monotonic()
            with tempfile.TemporaryDirectory(prefix="tailspan-guest-") as name:
                ended = self._boot(Path(name), results.resolve(), left_s)
            if (results / "booted").exists() or time.monotonic() - began >= timeout_s:
                break
        output = _text(results / "output")
        if not (results / "status").exists():
            raise GuestError(f"kernel {self.kernel.release} {ended}\n{output[-2000:]}")
        return Ended(
            int(_text(results / "status")), output, float(_text(results / "booted")), time.monotonic() - began
        )

    def _boot(self, folder: Path, results: Path, timeout_s: float) -> str:
        """How it went, with the last lines of the console."""
        places = {
            "repository": _REPOSITORY,
            "results": results,
            "modules": self.kernel.modules,
            "headers": self._headers or "",
        }
        (folder / "initramfs").write_bytes(_initramfs(self._tools, self.kernel, places))
        _make_disk(folder / "disk")
        console = folder / "console"
        with _sharing(self._tools, folder, results) as socket, console.open("wb") as out:
            command = self._command(folder, socket)
            qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._tools.environment
            )
            try:
                qemu.wait(timeout=timeout_s)
                how = "ended before its script did"
            except subprocess.TimeoutExpired:
                how = f"was not done after {timeout_s:.0f} s"
            finally:
                qemu.kill()
                qemu.wait()
        last = [line for line in _text(console).splitlines() if line.strip()][-_LAST_LINES:]
        return "\n".join((f"{how}; its console:", *last))

    def _command(self, folder: Path, socket: Path) -> list[str]:
        memory = f"memory-backend-memfd,id=memory,size={_MEMORY_MIB}M,share=on"
        firmware = [part for path in self._tools.firmware for part in ("-L", str(path))]
        return [
            *_ENDS_WITH_US,
            *(str(self._tools.qemu), *firmware, "-nodefaults", "-no-reboot", "-display", "none"),
            *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(_CPUS)),
            *("-m", f"{_MEMORY_MIB}M", "-object", memory, "-numa", "node,memdev=memory"),
            *("-chardev", f"socket,id=share,path={socket}", "-device", "vhost-user-fs-pci,chardev=share,tag=host"),
            *("-drive", f"file={folder / 'disk'},format=raw,if=virtio,cache=unsafe"),
            *("-serial", "stdio", "-kernel", str(self.kernel.image), "-initrd", str(folder / "initramfs")),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
        ]


@contextlib.contextmanager
def _sharing(tools: Tools, folder: Path, results: Path) -> Iterator[Path]:
    """The socket on which this machine's root is served."""
    socket, root = folder / "share", folder / "root"
    root.mkdir()
    daemon = (str(tools.virtiofsd), f"--socket-path={socket}", "--rlimit-nofile=100000")
    options = ("-o", f"source={root},cache=always,sandbox=chroot")
    with (folder / "share.log").open("wb") as log:
        process = subprocess.Popen(
            [*_ENDS_WITH_US, "unshare", "--mount", "sh", "-c", _SHARE, "share", root, results, *daemon, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=tools.environment,
        )
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise GuestError(f"the root file system is not shared: {_text(folder / 'share.log')[-500:]}")
            time.sleep(0.01)
        yield socket
    finally:
        process.kill()
        process.wait()


def _make_disk(path: Path) -> None:
    with path.open("wb") as disk:
        disk.truncate(_DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def _initramfs(tools: Tools, kernel: Unpacked, places: Mapping[str, object]) -> bytes:
    init = _INIT
    for name, place in places.items():
        init = init.replace(f"{{{name}}}", str(place))
    modules = _with_dependencies(kernel)
    files = {"init": init.encode(), "modprobe": _MODPROBE.encode(), "busybox": tools.busybox.read_bytes()}
    files |= {f"modules/{name}": content for name, content in modules.items()}
    files["modules/order"] = "\n".join(modules).encode()
    return _cpio(files)


def _with_dependencies(kernel: Unpacked) -> dict[str, bytes]:
    """Module -> its bytes, in an order in which they load. Those that are built in are in no file."""
    files = {path.name.partition(".ko")[0].replace("-", "_"): path for path in kernel.modules.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in files:
            return
        content = files[name].read_bytes()
        content = lzma.decompress(content) if files[name].suffix == ".xz" else content
        needs = re.search(rb"\0depends=([^\0]+)\0", content)
        for needed in needs[1].decode().split(",") if needs else ():
            add(needed.replace("-", "_"))
        found[name] = content

    for name in _MODULES:
        add(name)
    return found


def _cpio(files: dict[str, bytes]) -> bytes:
    """An archive as the kernel unpacks it ("newc"); everything in it may be executed."""
    directories = {str(parent): b"" for name in files for parent in Path(name).parents if parent.name}
    out = bytearray()
    for number, (name, content) in enumerate([*directories.items(), *files.items(), ("TRAILER!!!", b"")], 1):
        mode = 0o40755 if name in directories else 0o100755
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + "".join(f"{value:08x}" for value in fields).encode() + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def _text(path: Path) -> str:
    return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""
