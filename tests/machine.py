"""A machine of our own: systemd as PID 1 over a copy-on-write view of a folder, on the running kernel. Needs root.

It has its own processes, mounts, names, network (loopback alone), and cgroups without controllers; what is written
inside lies in memory and goes with it, however the test ends.

The kernel counts processes of the host, and so does the agent: one that it is to follow must have the same number
inside as on the host, and :attr:`Machine.prefix` starts it so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import eventually

#: Not for a machine that ends with its test: logins, devices, timers, what asks the network, what sets the kernel.
_MASKED = (
    *("getty.target", "systemd-logind.service", "systemd-user-sessions.service", "user.slice"),
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket"),
    *("systemd-udevd-kernel.socket", "systemd-journald-audit.socket", "dev-hugepages.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "proc-sys-fs-binfmt_misc.automount"),
    *("systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service"),
    *("systemd-random-seed.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
    *(
        "systemd-remount-fs.service",
        "systemd-pstore.service",
        "systemd-networkd.service",
        "systemd-resolved.service",
    ),
    *("systemd-timesyncd.service", "systemd-tmpfiles-clean.timer", "timers.target", "remote-fs.target"),
)

#: Lives as long as somebody holds its standard input, and takes the machine with it.
_KEEPER = """
set -eu
mount -t tmpfs -o mode=755 machine "$FOLDER"
mkdir "$FOLDER/cgroup" "$FOLDER/upper" "$FOLDER/work" "$FOLDER/root"
mount -t cgroup2 cgroup "$FOLDER/cgroup"
group="$FOLDER/cgroup/tailspan-machine-$$"
mkdir "$group"
end() {
    echo 1 >"$group/cgroup.kill"
    wait
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && return
        sleep 0.1
    done
}
trap end EXIT
# Nobody but the machine is in its group: else it could not hand controllers on to the groups below.
export GROUP="$group"
setpriv --pdeathsig KILL unshare --fork --kill-child --pid --mount --uts --ipc --net \\
    sh -c 'echo 0 >"$GROUP/cgroup.procs"; exec unshare --cgroup sh -c "$INSIDE" - "$@"' - "$@" </dev/null &
exec >&2
read -r _ || true
"""

#: The machine's first process, until it becomes systemd. Prints its number on the host, which /proc still shows.
_INSIDE = """
set -eu
read -r pid _ </proc/self/stat
echo "$pid"
exec >&2
root="$FOLDER/root"
mount -t overlay -o "lowerdir=$LOWER,upperdir=$FOLDER/upper,workdir=$FOLDER/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
for each in run tmp dev; do mount -t tmpfs tmpfs "$root/$each"; done
chmod 755 "$root/run" "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
chmod 1777 "$root/dev/shm"
for each in null zero full random urandom tty; do cp -a "/dev/$each" "$root/dev/"; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for each in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${each%:*}" "$root/dev/${each#*:}"; done
while [ $# -gt 0 ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
mkdir -p "$root/run/systemd/system" "$root/run/systemd/journald.conf.d"
for each in $MASKED; do ln -s /dev/null "$root/run/systemd/system/$each"; done
printf '[Journal]\\nStorage=volatile\\nRateLimitBurst=0\\n' >"$root/run/systemd/journald.conf.d/machine.conf"
[ "$LOWER" != / ] || rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/*.requires
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
hostname machine
echo machine >"$root/etc/hostname"
ip link set lo up
cd "$root"
mkdir -p mnt/old
pivot_root . mnt/old
umount --lazy /mnt/old
rmdir /mnt/old
exec env -i container=tailspan-tests PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
"""

#: Runs a command in the pid namespace of its children, with one number there and here (clone3(2), set_tid).
_SAME_PID = """
import ctypes, os, random, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
largest = int(open("/proc/sys/kernel/pid_max").read())
for _ in range(1000):
    number = random.randrange(largest // 2, largest)
    tids = (ctypes.c_int * 2)(number, number)
    arguments = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tids), 2, 0)
    child = libc.syscall(435, arguments, len(arguments))
    if child == 0:
        os.execvp(sys.argv[1], sys.argv[1:])
    if child > 0:
        break
else:
    sys.exit(os.strerror(ctypes.get_errno()))
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wdns=/")
_ENVIRONMENT = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")


class Machine:
    """``root`` holds the system to boot ("/": the host's own, without its services) and is not written to.

    ``folder`` is an empty one for mounts that nobody else sees. ``shown``: folders of the host, and where they can
    be read inside. Raises ``AssertionError`` with what the boot said where it does not come up.
    """

    def __init__(self, root: Path, folder: Path, shown: Mapping[Path, str] | None = None) -> None:
        self._console = folder.parent / f"{folder.name}.console"
        folder.mkdir(exist_ok=True)
        pairs = [str(word) for pair in (shown or {}).items() for word in pair]
        given = {"FOLDER": folder, "LOWER": root, "INSIDE": _INSIDE, "MASKED": " ".join(_MASKED)}
        with self._console.open("w") as console:
            self._keeper = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", _KEEPER, "-", *pairs],
                env=os.environ | {name: str(value) for name, value in given.items()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                text=True,
            )
        try:
            assert self._keeper.stdout is not None
            first = self._keeper.stdout.readline().strip()
            assert first.isdigit(), self._console.read_text()
            self.pid = int(first)  #: of its systemd, on the host
            eventually(self._is_up, "the machine is up", seconds=180)  # emulated, it takes half a minute
        except BaseException:
            self.close()
            print(self._console.read_text())
            raise

    @property
    def root(self) -> Path:
        """Its files, from outside."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command, this runs it inside, with the same process number inside and on the host."""
        enter = ("nsenter", "--target", str(self.pid), *_NAMESPACES, "--no-fork", *_ENVIRONMENT)
        return (*enter, "/usr/bin/python3", "-I", "-c", _SAME_PID)

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root. ``check``: its failure is an ``AssertionError`` with what it said."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), *_NAMESPACES, *_ENVIRONMENT, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def copy(self, source: Path, target: str) -> None:
        """A file, or a folder with all that is in it, to a path inside."""
        inside = self.root / target.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, inside, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, inside)

    def journal(self, unit: str) -> str:
        """All that a unit has logged, and systemd about it."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=short-precise", "--unit", unit).stdout

    def close(self) -> None:
        """End all that runs in it. What was written inside is gone."""
        if self._keeper.poll() is None:
            self._keeper.communicate(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_up(self) -> bool:
        assert self._keeper.poll() is None, self._console.read_text()
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")
