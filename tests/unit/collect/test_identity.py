"""Whose a cgroup is: by its path, for every runtime; by files like theirs; and whatever else is in them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan.collect import identity, identity_files
from tailspan.collect.host import Cgroups, node_name
from tailspan.collect.identity import Identities
from tailspan.collect.identity_files import image_attributes, read_names
from tailspan.collect.identity_path import CgroupName, parse
from tests.conftest import eventually

ID = "3f4e5d6c7b8a" + "0123456789abcdef" * 3 + "fe10"
NODE = "ab" * 32
UID = "4cad64d0-7a36-452a-8a08-bd3a694cdad5"
SLICE_UID = UID.replace("-", "_")
STATIC = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
BURSTABLE = "/kubepods.slice/kubepods-burstable.slice"
LONG_S = 20.0


def container(**more: str) -> CgroupName:
    return CgroupName(container_id=ID, **more)


PATHS = {
    # Docker
    f"/docker/{ID}": container(),
    f"/system.slice/docker-{ID}.scope": container(),
    f"/system.slice:docker:{ID}": container(),
    f"/system.slice/docker-{ID}.scope/init": container(),
    f"/system.slice/docker-{ID}.scope/system.slice/httpd.service": container(unit="httpd.service"),
    # containerd, by the CRI and by itself
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope": container(pod_uid=UID),
    f"{BURSTABLE}/kubepods-burstable-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope": container(pod_uid=UID),
    f"/system.slice/containerd.service/kubepods-besteffort-pod{SLICE_UID}.slice:cri-containerd:{ID}": container(),
    f"/default/{ID}": container(),
    f"/system.slice/nerdctl-{ID}.scope": container(),
    # the kubelet's groups, without systemd
    f"/kubepods/burstable/pod{UID}/{ID}": container(pod_uid=UID),
    f"/kubepods/pod{STATIC}/{ID}": container(pod_uid=STATIC),
    f"/kubepods/besteffort/pod{UID}": CgroupName(pod_uid=UID),
    f"/kubepods.slice/kubepods-pod{STATIC}.slice": CgroupName(pod_uid=STATIC),
    BURSTABLE: CgroupName(),
    # CRI-O
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-{ID}.scope": container(pod_uid=UID),
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-{ID}.scope/container": container(pod_uid=UID),
    f"/kubepods/pod{UID}/crio-{ID}": container(pod_uid=UID),
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-conmon-{ID}.scope": CgroupName(
        pod_uid=UID, unit=f"crio-conmon-{ID}.scope"
    ),
    # Podman, of root and of a user
    f"/machine.slice/libpod-{ID}.scope/container": container(),
    f"/machine.slice/libpod-conmon-{ID}.scope": CgroupName(unit=f"libpod-conmon-{ID}.scope"),
    f"/libpod_parent/libpod-{ID}": container(),
    f"/machine.slice/machine-libpod_pod_{NODE}.slice/libpod-{ID}.scope": container(),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container": container(),
    # a cluster whose node is a container: what is inside counts
    f"/docker/{NODE}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE_UID}.slice"
    f"/cri-containerd-{ID}.scope": container(pod_uid=UID),
    f"/system.slice/docker-{NODE}.scope/system.slice/kubelet.service": CgroupName(NODE, unit="kubelet.service"),
    f"/kubepods/pod{UID}/{NODE}/docker/{ID}": container(pod_uid=UID),
    # machines
    "/machine.slice/systemd-nspawn@web.service/payload": CgroupName(container_name="web"),
    "/machine.slice/systemd-nspawn@web.service/payload/system.slice/cron.service": CgroupName(
        container_name="web", unit="cron.service"
    ),
    "/machine.slice/machine-my\\x2dweb.scope": CgroupName(container_name="my-web"),
    "/machine.slice/machine-qemu\\x2d1\\x2ddb.scope/libvirt/emulator": CgroupName(
        unit="machine-qemu\\x2d1\\x2ddb.scope"
    ),
    "/lxc.payload.ci/system.slice/ssh.service": CgroupName(container_name="ci", unit="ssh.service"),
    # systemd
    "/system.slice/cron.service": CgroupName(unit="cron.service"),
    "/system.slice/system-getty.slice/getty@tty1.service": CgroupName(unit="getty@tty1.service"),
    "/system.slice/tailspan.service/workers": CgroupName(unit="tailspan.service"),
    "/user.slice/user-1000.slice/session-3.scope": CgroupName(unit="session-3.scope"),
    "/user.slice/user-1000.slice/user@1000.service/app.slice/app-editor-7.scope": CgroupName(
        unit="app-editor-7.scope"
    ),
    "/user.slice/user-1000.slice/user@1000.service/init.scope": CgroupName(unit="user@1000.service"),
    "/init.scope": CgroupName(unit="init.scope"),
    # nobody's
    "": CgroupName(),
    "/": CgroupName(),
    "/batch.slice": CgroupName(),
    "/../../batch": CgroupName(),
    f"/docker/{ID[:63]}": CgroupName(),
    f"/docker/{ID.upper()}": CgroupName(),
    f"/system.slice/{ID}-1a2b.timer": CgroupName(),
    "/kubepods/pod../../etc": CgroupName(),
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.replace(ID, "ID").replace(NODE, "NODE")[:60])
def test_a_path_says_what_it_is(path: str) -> None:
    assert parse(path) == PATHS[path]


_PARTS = st.one_of(
    st.text(),
    st.sampled_from([*PATHS, "..", ".", f"docker-{ID}.scope", f"pod{UID}", f"docker-{ID[:-1]}/.scope", "\0"]),
)


@given(st.lists(_PARTS).map("/".join))
def test_what_a_path_says_is_safe_to_look_up(path: str) -> None:
    name = parse(path)
    hex_digits = set("0123456789abcdef")
    assert not name.container_id or (len(name.container_id) == 64 and set(name.container_id) <= hex_digits)
    assert set(name.pod_uid) <= hex_digits | {"-"}


KUBERNETES = {
    "k8s.pod.name": "etl-7",
    "k8s.namespace.name": "batch",
    "k8s.container.name": "stress",
    "k8s.pod.uid": UID,
}
IMAGE = {"container.image.name": "registry:5000/tools/stress", "container.image.tags": "1.4"}
REFERENCE = "registry:5000/tools/stress:1.4"
CRI_NOTES = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.container-name": "stress",
    "io.kubernetes.cri.image-name": REFERENCE,
    "io.kubernetes.cri.sandbox-id": NODE,
    "io.kubernetes.cri.sandbox-name": "etl-7",
    "io.kubernetes.cri.sandbox-namespace": "batch",
    "io.kubernetes.cri.sandbox-uid": UID,
}
LABELS = {
    "io.kubernetes.container.name": "stress",
    "io.kubernetes.pod.name": "etl-7",
    "io.kubernetes.pod.namespace": "batch",
    "io.kubernetes.pod.uid": UID,
}
CRIO_NOTES = {
    "io.kubernetes.cri-o.Labels": json.dumps(LABELS),
    "io.kubernetes.cri-o.ImageName": REFERENCE,
    "io.kubernetes.cri-o.KubeName": "etl-7",
    "io.kubernetes.cri-o.Namespace": "batch",
}
TASKS = "run/containerd/io.containerd.runtime.v2.task"
STORAGE = "containers/storage/overlay-containers"
ROW = {"id": ID, "names": ["web"], "image": NODE, "metadata": json.dumps({"image-name": REFERENCE, "name": "web"})}
DOCKER = {"ID": ID, "Name": "/web", "Config": {"Image": REFERENCE, "Env": ["PASSWORD=secret"], "Labels": {}}}

#: What a host has on disk of the container, and what is to be known of it.
FILES: dict[str, tuple[str, object, dict[str, str]]] = {
    "containerd": (f"{TASKS}/k8s.io/{ID}/config.json", {"annotations": CRI_NOTES}, KUBERNETES | IMAGE),
    "containerd of k3s": (
        f"run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
        {"annotations": CRI_NOTES},
        KUBERNETES | IMAGE,
    ),
    "a pod's own container": (
        f"{TASKS}/k8s.io/{ID}/config.json",
        {
            "annotations": {
                "io.kubernetes.cri.sandbox-name": "etl-7",
                "io.kubernetes.cri.sandbox-namespace": "batch",
            }
        },
        {"k8s.pod.name": "etl-7", "k8s.namespace.name": "batch"},
    ),
    "nerdctl": (
        f"{TASKS}/default/{ID}/config.json",
        {"annotations": {"nerdctl/name": "web", "nerdctl/namespace": "default"}},
        {"container.name": "web"},
    ),
    "docker": (f"var/lib/docker/containers/{ID}/config.v2.json", DOCKER, {"container.name": "web"} | IMAGE),
    "docker for kubernetes": (
        f"var/lib/docker/containers/{ID}/config.v2.json",
        {"Name": "/k8s_stress_etl-7_batch_0", "Config": {"Image": f"sha256:{NODE}", "Labels": LABELS}},
        KUBERNETES | {"container.name": "k8s_stress_etl-7_batch_0"},
    ),
    "cri-o": (f"run/{STORAGE}/{ID}/userdata/config.json", {"annotations": CRIO_NOTES}, KUBERNETES | IMAGE),
    "cri-o's own container": (
        f"var/lib/{STORAGE}/{ID}/userdata/config.json",
        {"annotations": LABELS | {"io.kubernetes.container.name": "POD"}},
        {name: value for name, value in KUBERNETES.items() if name != "k8s.container.name"},
    ),
    "podman": (f"var/lib/{STORAGE}/containers.json", [{"id": NODE}, ROW], {"container.name": "web"} | IMAGE),
    "podman run --rm": (
        f"var/lib/{STORAGE}/volatile-containers.json",
        [ROW],
        {"container.name": "web"} | IMAGE,
    ),
    "the kubelet's log": (
        f"var/log/containers/etl-7_batch_stress-{ID}.log",
        None,
        {name: value for name, value in KUBERNETES.items() if name != "k8s.pod.uid"},
    ),
}


def write(root: Path, path: str, body: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(body))
    return file


@pytest.mark.parametrize("runtime", FILES)
def test_the_files_of_a_runtime_say_the_rest(tmp_path: Path, runtime: str) -> None:
    path, body, expected = FILES[runtime]
    write(tmp_path, path, body)
    assert read_names(tmp_path, container()) == expected
    assert read_names(tmp_path, CgroupName(container_id=NODE[:62] + "00")) == {}


def test_a_pod_s_names_are_in_its_folder_of_logs(tmp_path: Path) -> None:
    (tmp_path / f"var/log/pods/batch_etl-7_{UID}/stress").mkdir(parents=True)
    expected = {"k8s.pod.name": "etl-7", "k8s.namespace.name": "batch"}
    assert read_names(tmp_path, CgroupName(pod_uid=UID)) == expected
    assert read_names(tmp_path, container(pod_uid=UID)) == expected
    assert read_names(tmp_path, CgroupName(pod_uid=STATIC)) == {}


def test_of_docker_on_containerd_both_files_are_there_and_the_one_with_the_name_is_taken(tmp_path: Path) -> None:
    write(tmp_path, f"{TASKS}/moby/{ID}/config.json", {"ociVersion": "1.1.0", "process": {"env": ["A=b"]}})
    write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", DOCKER)
    assert read_names(tmp_path, container()) == {"container.name": "web"} | IMAGE


@pytest.mark.parametrize(
    ("reference", "name", "tags"),
    [
        ("nginx", "nginx", None),
        ("nginx:1.27", "nginx", "1.27"),
        ("registry:5000/nginx", "registry:5000/nginx", None),
        (f"registry:5000/team/nginx:1.27@sha256:{NODE}", "registry:5000/team/nginx", "1.27"),
        (f"nginx@sha256:{NODE}", "nginx", None),
        (f"sha256:{NODE}", None, None),
        (NODE, None, None),
        ("", None, None),
    ],
)
def test_an_image_has_a_name_and_a_tag(reference: str, name: str | None, tags: str | None) -> None:
    found = image_attributes(reference)
    assert (found.get("container.image.name"), found.get("container.image.tags")) == (name, tags)


def test_no_link_no_pipe_and_no_large_file_is_read(tmp_path: Path) -> None:
    secret = write(tmp_path, "etc/secret", DOCKER)
    file = write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", DOCKER)
    assert read_names(tmp_path, container())

    file.unlink()
    file.symlink_to(secret)
    assert read_names(tmp_path, container()) == {}
    file.unlink()
    os.mkfifo(file)
    assert read_names(tmp_path, container()) == {}
    file.unlink()
    file.mkdir()
    assert read_names(tmp_path, container()) == {}
    file.rmdir()
    file.write_text(json.dumps(DOCKER | {"padding": "x" * identity_files.MAX_FILE_BYTES}))
    assert read_names(tmp_path, container()) == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from([*CRI_NOTES, *CRIO_NOTES, "annotations", "Config", "Labels", "id"]), inner
        )
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for path, body, _ in FILES.values():
        write(root, path, body)
    return root


@pytest.mark.parametrize("runtime", [runtime for runtime, (_, body, _) in FILES.items() if body is not None])
@given(content=st.one_of(st.binary(), _JSON.map(lambda body: json.dumps(body).encode()), st.just(b"[" * 100_000)))
def test_whatever_is_in_a_file_names_are_text_that_can_be_stored(
    scratch: Path, runtime: str, content: bytes
) -> None:
    for path, _, _ in FILES.values():
        (scratch / path).unlink(missing_ok=True)
    (scratch / FILES[runtime][0]).write_bytes(content)
    _assert_storable(read_names(scratch, container(pod_uid=UID)))


@given(st.dictionaries(st.sampled_from([*CRI_NOTES, *LABELS]), st.text(st.characters(exclude_categories=()))))
def test_names_are_bounded_text_without_control_characters(scratch: Path, notes: dict[str, str]) -> None:
    write(scratch, FILES["containerd"][0], {"annotations": notes})
    _assert_storable(read_names(scratch, container()))


def _assert_storable(found: dict[str, Any]) -> None:
    for value in found.values():
        assert isinstance(value, str)
        assert 0 < len(value) <= identity_files.MAX_VALUE_CHARACTERS
        assert value.isprintable()
        value.encode()


@pytest.fixture
def identities(tmp_path: Path) -> Iterator[Identities]:
    opened = Identities(tmp_path, node="node-1")
    yield opened
    opened.close()


def known(identities: Identities, path: str, attribute: str) -> str:
    """What is known of it, soon: a busy machine may take longer than a caller waits."""
    eventually(lambda: attribute in identities.of([path]).get(path, {}), f"{attribute} of {path}")
    return identities.of([path])[path][attribute]


def test_an_identity_is_of_path_and_files_together(tmp_path: Path, identities: Identities) -> None:
    write(tmp_path, *FILES["containerd"][:2])
    path = f"/kubepods/burstable/pod{UID}/{ID}"
    cron = "/system.slice/cron.service"

    assert known(identities, path, "k8s.container.name") == "stress"
    assert identities.of([path, cron, "/batch.slice", ""]) == {
        path: KUBERNETES | IMAGE | {"container.id": ID, "k8s.node.name": "node-1"},
        cron: {"tailspan.systemd.unit": "cron.service"},
    }


def test_the_path_is_enough_where_no_file_can_be_read(identities: Identities) -> None:
    path = f"/system.slice/docker-{ID}.scope"
    assert identities.of([path]) == {path: {"container.id": ID}}


def test_a_young_container_is_looked_for_again_and_an_old_one_is_not(
    tmp_path: Path, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "RETRY_S", 0.0)
    young, old = f"/docker/{ID}", f"/docker/{NODE}"
    identities.of([young, old])
    write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", DOCKER)
    assert known(identities, young, "container.name") == "web"

    eventually(lambda: not identities._entries[old].pending, "the first look is over")
    monkeypatch.setattr(identity, "YOUNG_S", 0.0)
    write(tmp_path, f"var/lib/docker/containers/{NODE}/config.v2.json", DOCKER)
    identities.of([old])
    assert not identities._entries[old].pending
    assert identities.of([old]) == {old: {"container.id": NODE}}
    monkeypatch.setattr(identity, "YOUNG_S", LONG_S)
    assert known(identities, old, "container.name") == "web"


def test_what_was_found_is_remembered_when_the_container_is_gone(tmp_path: Path, identities: Identities) -> None:
    file = write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", DOCKER)
    assert known(identities, f"/docker/{ID}", "container.name") == "web"
    file.unlink()
    assert identities.of([f"/docker/{ID}"])[f"/docker/{ID}"]["container.name"] == "web"


def test_a_disk_that_hangs_keeps_nobody(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    released, entered = threading.Event(), threading.Event()

    def hang(root: Path, name: CgroupName) -> dict[str, str]:
        entered.set()
        released.wait(LONG_S)
        return {"container.name": "web"}

    monkeypatch.setattr(identity, "read_names", hang)
    try:
        before = time.monotonic()
        first = identities.of([f"/docker/{ID}"])
        assert entered.wait(LONG_S)
        for number in range(3 * identity.MAX_ASKED):
            path = f"/docker/{number:064x}"
            assert identities.of([path]) == {path: {"container.id": f"{number:064x}"}}
            if number == 5:
                monkeypatch.setattr(identity, "PATIENCE_S", 0.0)
        assert time.monotonic() - before < LONG_S
        assert first == {f"/docker/{ID}": {"container.id": ID}}
    finally:
        released.set()
    assert known(identities, f"/docker/{ID}", "container.name") == "web"


def test_a_reader_that_fails_goes_on(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_for_one(root: Path, name: CgroupName) -> dict[str, str]:
        if name.container_id == NODE:
            raise ZeroDivisionError
        return {"container.name": "web"}

    monkeypatch.setattr(identity, "read_names", fail_for_one)
    assert identities.of([f"/docker/{NODE}"]) == {f"/docker/{NODE}": {"container.id": NODE}}
    assert known(identities, f"/docker/{ID}", "container.name") == "web"


def test_the_oldest_is_forgotten_and_memory_is_bounded(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "MAX_CGROUPS", 8)
    for number in range(100):
        identities.of(["/kept.service", f"/system.slice/unit-{number}.service"])
    assert len(identities._entries) == 8
    assert "/kept.service" in identities._entries
    assert len(identities.of([f"/u{number}.service" for number in range(50)])) == 50


def test_nothing_is_read_once_it_is_closed(tmp_path: Path) -> None:
    write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", DOCKER)
    closed = Identities(tmp_path)
    closed.close()
    assert closed.of([f"/docker/{ID}"]) == {f"/docker/{ID}": {"container.id": ID}}


@given(st.lists(st.text(st.characters(exclude_categories=()))))
def test_any_path_has_an_identity_that_can_be_stored(paths: list[str]) -> None:
    for found in Identities(Path("/nowhere")).of(paths).values():
        _assert_storable(found)


def test_the_node_is_the_one_that_the_pod_was_told() -> None:
    assert node_name({"NODE_NAME": "a"}) == "a"
    assert node_name({"K8S_NODE_NAME": "b", "NODE_NAME": "a"}) == "b"
    assert node_name({}) == ""


def test_a_cgroup_named_in_bytes_that_are_no_text_has_a_path_that_is(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9.service")
    folder.mkdir()
    path = Cgroups(tmp_path).path(folder.stat().st_ino)
    assert path == "/caf\N{REPLACEMENT CHARACTER}.service"
