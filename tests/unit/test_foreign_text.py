"""Text that others wrote, where the agent starts or runs by it: names, numbers and nesting of any kind."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tailspan import config
from tailspan.collect.bpf.preflight import cpu_controller_is_v1
from tailspan.collect.host import _cpu_hierarchy
from tailspan.collect.targets import cgroup_paths
from tailspan.control import ControlServer
from tailspan.export.otlp.over_http import _retry_after_s

#: Names in which bytes, text and the kernel see different lines and words.
NAMES = [b"caf\xc3", b"a\xe2\x80\xa8b c", b"a\x0bb", b"a\x0cb", b"a\x1cb", b"a\xc2\x85b", b"a\xc2\xa0b"]


@pytest.mark.parametrize("nested", [b"[" * 2000, b'{"do":' * 600])
def test_a_request_of_many_brackets_is_answered(tmp_path: Path, nested: bytes) -> None:
    path = tmp_path / "control"
    with (
        closing(ControlServer(path, lambda request: lambda: {"ok": True})) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
    ):
        client.connect(str(path))
        client.sendall(nested + b"\n")
        server.poll()
        assert json.loads(client.recv(4096)) == {"ok": False, "error": "the request is no JSON"}


@pytest.mark.parametrize("digits", ["9" * 400, "0x" + "f" * 400, "0x" + "f" * 5000])
@pytest.mark.parametrize("key", ["slow.slo_ms", "store.days", "follow.ports", "store.path"])
def test_a_number_of_any_length_is_a_problem_with_its_place(tmp_path: Path, digits: str, key: str) -> None:
    section, _, name = key.partition(".")
    file = tmp_path / "tailspan.toml"
    file.write_text(f"[{section}]\n{name} = {f'[{digits}]' if name == 'ports' else digits}\n")
    (problem,) = config.read(file, {}, {}).problems
    assert (problem.where, problem.key) == (f"{file}:2", key)
    assert len(problem.text) < 1000


@pytest.mark.parametrize("name", NAMES)
def test_a_mount_point_may_be_called_anything(tmp_path: Path, name: bytes) -> None:
    mounts = tmp_path / "mounts"
    escaped = name.replace(b" ", b"\\040")  # fs/proc_namespace.c
    rest = b"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"
    mounts.write_bytes(b"%s /home/%s fuse.%s rw 0 0\n" % (escaped, escaped, escaped) + rest)
    assert not cpu_controller_is_v1(mounts)
    assert _cpu_hierarchy(mounts) == Path("/sys/fs/cgroup")


@pytest.mark.parametrize("name", NAMES)
def test_a_cgroups_name_is_one_path(name: bytes) -> None:
    (path,) = cgroup_paths(b"0::/user.slice/" + name + b"0::/system.slice/ssh.service\n")
    assert path.startswith("/user.slice/")


@pytest.mark.parametrize("date", ["21 Oct 99999999999 07:28:00 GMT", "21 Oct 2026 07:28:00 +99999999999999"])
def test_a_backend_may_name_any_date(date: str) -> None:
    assert _retry_after_s(f"Wed, {date}") is None
