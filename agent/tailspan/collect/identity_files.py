"""What runtimes and the kubelet leave on disk about a container: its names, its image, its pod.

===========================================================  ================================================
``/run/containerd/…/NAMESPACE/ID/config.json``               containerd, of pods too (k3s: below ``/run/k3s``)
``/var/lib/docker/containers/ID/config.v2.json``             Docker
``/run/containers/storage/…/ID/userdata/config.json``        CRI-O
``/var/lib/containers/storage/…/containers.json``            Podman
``/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log``       the kubelet: names only, and any user may read them
``/var/log/pods/NAMESPACE_POD_UID``                          the kubelet
===========================================================  ================================================

Those of runtimes are root's: reading them takes root or CAP_DAC_READ_SEARCH. Beside the names they hold secrets
(environments); nothing but the names is kept. No network, no credential, nothing that a container can write.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tailspan.collect.identity_path import CgroupName

MAX_FILE_BYTES = 1 << 20
MAX_VALUE_CHARACTERS = 256
#: Entries of a folder that are looked at.
MAX_ENTRIES = 20_000
MAX_CONTAINERD_NAMESPACES = 16

_CONTAINERD = ("run/containerd", "run/k3s/containerd", "var/snap/microk8s/common/run/containerd")
_STORAGES = ("run/containers/storage", "var/lib/containers/storage")

#: Attribute -> the annotations or labels that have it: containerd's, the kubelet's, CRI-O's, nerdctl's.
_NOTES = {
    "k8s.pod.name": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name", "io.kubernetes.cri-o.KubeName"),
    "k8s.namespace.name": (
        "io.kubernetes.cri.sandbox-namespace",
        "io.kubernetes.pod.namespace",
        "io.kubernetes.cri-o.Namespace",
    ),
    "k8s.pod.uid": ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
    "k8s.container.name": ("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
    "container.name": ("nerdctl/name",),
}
_IMAGES = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
_CRIO_LABELS = "io.kubernetes.cri-o.Labels"
#: What the kubelet calls the container that only holds a pod's namespaces.
_SANDBOX = "POD"


def read_names(root: Path, name: CgroupName) -> dict[str, str]:
    """OpenTelemetry attributes of a container or pod from the files below ``root``; {} where none says any."""
    found: dict[str, str] = {}
    if name.container_id:
        sources: tuple[Callable[[Path, str], dict[str, str]], ...] = (_containerd, _docker, _crio, _podman, _log)
        found = next(filter(None, (source(root, name.container_id) for source in sources)), {})
    uid = name.pod_uid or found.get("k8s.pod.uid", "")
    if uid and "k8s.pod.name" not in found:
        found |= _pod_log(root, uid)
    return found


def image_attributes(reference: str) -> dict[str, str]:
    """``registry/web:1.27@sha256:…`` -> its name and its tag; {} where it is the number of an image."""
    name, _, _ = reference.partition("@")
    before, _, tag = name.rpartition(":")
    tag = "" if not before or "/" in tag else tag
    name = before if tag else name
    if name == "sha256" or _is_id(name):
        return {}
    return _known({"container.image.name": name, "container.image.tags": tag})


def clean(value: object) -> str:
    """Text that may be stored, sent and printed; "" of anything else."""
    return "".join(filter(str.isprintable, value))[:MAX_VALUE_CHARACTERS] if isinstance(value, str) else ""


def _containerd(root: Path, container_id: str) -> dict[str, str]:
    for base in _CONTAINERD:
        tasks = root / base / "io.containerd.runtime.v2.task"
        for namespace in itertools.islice(_names(tasks), MAX_CONTAINERD_NAMESPACES):
            found = _of_spec(tasks / namespace / container_id / "config.json")
            if found:
                return found
    return {}


def _docker(root: Path, container_id: str) -> dict[str, str]:
    body = _json(root / "var/lib/docker/containers" / container_id / "config.v2.json")
    config = body.get("Config") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(config, dict):
        return {}
    name, labels = clean(body.get("Name")).lstrip("/"), config.get("Labels")
    return {
        **_known({"container.name": name}),
        **image_attributes(clean(config.get("Image"))),
        **_of_notes(labels if isinstance(labels, dict) else {}),
    }


def _crio(root: Path, container_id: str) -> dict[str, str]:
    specs = (root / base / "overlay-containers" / container_id / "userdata/config.json" for base in _STORAGES)
    return next(filter(None, map(_of_spec, specs)), {})


def _podman(root: Path, container_id: str) -> dict[str, str]:
    for base, file in itertools.product(_STORAGES, ("containers.json", "volatile-containers.json")):
        rows = _json(root / base / "overlay-containers" / file)
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("id") == container_id:
                return _of_storage(row)
    return {}


def _of_storage(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the containers that the storage library keeps; its user's own facts are JSON inside it."""
    names = row.get("names")
    metadata = _parsed(row.get("metadata"))
    image = clean(metadata.get("image-name")) if isinstance(metadata, dict) else ""
    name = clean(names[0]) if isinstance(names, list) and names else ""
    return _known({"container.name": name}) | image_attributes(image)


def _log(root: Path, container_id: str) -> dict[str, str]:
    ending = f"-{container_id}.log"
    for name in _names(root / "var/log/containers"):
        pod, _, rest = name.removesuffix(ending).partition("_")
        namespace, underscore, container = rest.partition("_")
        if name.endswith(ending) and underscore:
            return _known({"k8s.pod.name": pod, "k8s.namespace.name": namespace, "k8s.container.name": container})
    return {}


def _pod_log(root: Path, uid: str) -> dict[str, str]:
    for name in _names(root / "var/log/pods"):
        namespace, _, rest = name.removesuffix(f"_{uid}").partition("_")
        if rest and name.endswith(f"_{uid}"):
            return _known({"k8s.pod.name": rest, "k8s.namespace.name": namespace})
    return {}


def _of_spec(path: Path) -> dict[str, str]:
    """Of a container's specification as runtimes are given it (OCI)."""
    body = _json(path)
    notes = body.get("annotations") if isinstance(body, dict) else None
    if not isinstance(notes, dict):
        return {}
    labels = _parsed(notes.get(_CRIO_LABELS))
    notes = (labels if isinstance(labels, dict) else {}) | notes
    image = next(filter(None, (clean(notes.get(key)) for key in _IMAGES)), "")
    return _of_notes(notes) | image_attributes(image)


def _of_notes(notes: Mapping[str, Any]) -> dict[str, str]:
    found = _known(
        {
            attribute: next(filter(None, (clean(notes.get(key)) for key in keys)), "")
            for attribute, keys in _NOTES.items()
        }
    )
    if found.get("k8s.container.name") == _SANDBOX:
        del found["k8s.container.name"]
    return found


def _known(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, value in attributes.items() if (text := clean(value))}


def _is_id(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _names(folder: Path) -> Iterator[str]:
    """Of the folder's entries; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in itertools.islice(entries, MAX_ENTRIES))
    except OSError:
        return


def _json(path: Path) -> object:
    """None: not there, not readable, not a plain file, too large, not JSON."""
    try:
        # A link or a pipe where a plain file should be is not followed, and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return _parsed(content) if len(content) <= MAX_FILE_BYTES else None


def _parsed(text: object) -> object:
    if not isinstance(text, str | bytes):
        return None
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed
