"""Whose a cgroup is: its path, which who was given a subtree may choose, and the files of container runtimes."""

from __future__ import annotations

import json
import random
import re
import shutil

from tailspan.collect.identity_files import MAX_VALUE_CHARACTERS, read_names
from tailspan.collect.identity_path import CgroupName, parse
from tests.fuzz import frames, mutation
from tests.fuzz.target import Change, Target
from tests.fuzz.targets import scratch

_ID = "3f4e" * 16
_UID = "0f9b1a2c-0000-1111-2222-333344445555"
_PLACES = (
    "run/containerd/io.containerd.runtime.v2.task/k8s.io/{}/config.json",
    "var/lib/docker/containers/{}/config.v2.json",
    "run/containers/storage/overlay-containers/{}/userdata/config.json",
    "var/lib/containers/storage/overlay-containers/containers.json",
)
_KNOWN = {
    "container.name",
    "container.image.name",
    "container.image.tags",
    "k8s.pod.name",
    "k8s.namespace.name",
    "k8s.pod.uid",
    "k8s.container.name",
}


def check(data: bytes) -> None:
    """Pieces: a cgroup's path, a file's content, names of logs."""
    path, content, logs = frames.exactly(data, 3)
    name = parse(path.decode("utf-8", "replace"))
    _check_name(name)
    root = scratch.folder("identity")
    shutil.rmtree(root, ignore_errors=True)
    place = root / _PLACES[len(path) % len(_PLACES)].format(name.container_id or _ID)
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    for kind, folder in enumerate(("var/log/containers", "var/log/pods")):
        (root / folder).mkdir(parents=True)
        for log in logs.split(b"/")[kind : kind + 3]:
            if 0 < len(log) < 200 and b"\0" not in log and log not in (b".", b".."):
                (root / folder / log.decode("utf-8", "surrogateescape")).touch()
    for known in (name, CgroupName(container_id=_ID), CgroupName(pod_uid=_UID)):
        for attribute, value in read_names(root, known).items():
            assert attribute in _KNOWN, attribute
            assert 0 < len(value) <= MAX_VALUE_CHARACTERS and value.isprintable(), (attribute, value)
            value.encode()


def _check_name(name: CgroupName) -> None:
    assert re.fullmatch("(?:[0-9a-f]{64})?", name.container_id), name
    assert re.fullmatch("(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})?", name.pod_uid), name
    assert "/" not in name.unit and not (name.container_id and name.container_name), name


def seeds() -> dict[str, bytes]:
    notes = {
        "io.kubernetes.cri.sandbox-name": "web-7f",
        "io.kubernetes.cri.sandbox-namespace": "prod",
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.image-name": "registry:5000/web:1.27@sha256:00",
        "io.kubernetes.cri-o.Labels": json.dumps({"io.kubernetes.pod.uid": _UID}),
    }
    spec = json.dumps({"annotations": notes})
    docker = json.dumps({"Name": "/web", "Config": {"Image": "web:1", "Labels": {"nerdctl/name": "x"}}})
    metadata = json.dumps({"image-name": "docker.io/library/web:2"})
    podman = json.dumps([{"id": _ID, "names": ["pod"], "metadata": metadata}, 7])
    logs = f"web-7f_prod_app-{_ID}.log/prod_web-7f_{_UID}/x"
    paths = {
        f"/kubepods.slice/kubepods-pod{_UID.replace('-', '_')}.slice/cri-containerd-{_ID}.scope": spec,
        f"/system.slice/docker-{_ID}.scope/init.scope": docker,
        f"/machine.slice/libpod-{_ID}.scope/container": podman,
        f"/kubepods/pod{_UID}/{_ID}": spec,
        "/machine.slice/systemd-nspawn@a\\x2db.service/system.slice/web.service": "{}",
        "/user.slice/app.slice/crio-conmon-x.scope": "",
    }
    return {
        f"{number}": frames.join((path.encode(), content.encode(), logs.encode()))
        for number, (path, content) in enumerate(paths.items())
    }


def _piece(which: int, piece: bytes, rng: random.Random, change: Change) -> bytes:
    if which == 1 and rng.random() < 0.8:
        try:
            return json.dumps(mutation.tree_value(json.loads(piece), rng, change)).encode()
        except (ValueError, TypeError, RecursionError):
            pass
    if which == 0 and rng.random() < 0.3:
        return piece + b"/" * rng.randrange(1, 4)  # the length says which file it is
    return change(piece, len(piece) + 32)


def mutate(data: bytes, rng: random.Random, change: Change) -> bytes:
    return frames.mutate(frames.join(frames.exactly(data, 3)), rng, change, _piece, fixed=True)


TARGET = Target(
    name="identity",
    reads="paths of cgroups and files of container runtimes, by `collect.identity_path` and `identity_files`",
    holds="ids have their form; an attribute is a known one, and its value text that may be stored and printed",
    sources=("tailspan.collect.identity_path", "tailspan.collect.identity_files"),
    check=check,
    seeds=seeds,
    mutate=mutate,
    words=(
        b".scope",
        b".service",
        b"kubepods-pod",
        b"annotations",
        b"io.kubernetes.pod.name",
        b"\\x2d",
        b"\\ud800",
    ),
    max_bytes=3072,
)
