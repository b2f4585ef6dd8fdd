"""What each system call's arguments say about what it may sleep on: fills ``call_shapes`` of bpf/sleep.bpf.h."""

from __future__ import annotations

from tailspan.wire.syscalls import SYSCALLS

#: enum call_shape, and MAX_SYSCALLS, of bpf/sleep.bpf.h.
_FUTEX, _FD, _POLL = 1, 2, 3
_MAX = 512

_CALLS = {
    _FUTEX: ("futex", "futex_wait"),
    _POLL: ("poll", "ppoll"),
    _FD: (
        *("read", "pread64", "readv", "preadv", "preadv2", "write", "pwrite64", "writev", "pwritev", "pwritev2"),
        *("recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg", "sendmmsg", "accept", "accept4", "connect"),
        *("shutdown", "sendfile", "splice", "tee", "vmsplice", "copy_file_range", "close", "ioctl", "fcntl"),
        *("fsync", "fdatasync", "sync_file_range", "syncfs", "ftruncate", "fallocate", "flock", "readahead"),
        *("fadvise64", "getdents", "getdents64", "epoll_wait", "epoll_pwait", "epoll_pwait2", "io_uring_enter"),
    ),
}


def call_shapes() -> bytes:
    """One byte per system call number of this architecture."""
    shapes = bytearray(_MAX)
    for shape, names in _CALLS.items():
        for name in names:
            if name in SYSCALLS:
                shapes[SYSCALLS.index(name)] = shape
    return bytes(shapes)
