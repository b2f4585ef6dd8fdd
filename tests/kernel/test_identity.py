"""Real cgroups that are named as runtimes name them, with real processes inside: who is told, and where."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.judge import described
from tailspan.collect.bpf.source import BpfSource
from tailspan.collect.host import Cgroups
from tailspan.collect.identity import Identities
from tailspan.config import load
from tailspan.pipeline import Judged, Moment, Pipeline
from tailspan.timeline.evidence import Meta
from tailspan.timeline.inbox import Received
from tailspan.wire.spans import Hello, Request
from tests.conftest import eventually
from tests.workloads import LAST_CPU, Program, cpu_cgroup, cpu_hog, program

pytestmark = pytest.mark.kernel

WEB, WORKER = "3f4e5d6c" * 8, "ab" * 32
UID = "4cad64d0-7a36-452a-8a08-bd3a694cdad5"

#: 200 ms of CPU time, which takes longer beside somebody else.
SERVE = """
start = time.monotonic_ns()
while time.thread_time() < 0.2: pass
print(start, time.monotonic_ns(), flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def group(parent: Path, path: str) -> Iterator[Path]:
    """A cgroup, with those between, removed at the end: what ran in it has ended, and takes a moment to leave."""
    made = [parent / Path(*Path(path).parts[: depth + 1]) for depth in range(len(Path(path).parts))]
    for folder in made:
        folder.mkdir()
    try:
        yield made[-1]
    finally:
        for folder in reversed(made):
            eventually(lambda gone=folder: _removed(gone), f"{folder} is removed")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def serve(source: BpfSource, worker: Program, identities: Identities) -> Judged:
    """One request of the worker, judged as the agent does it."""
    pipeline = Pipeline(load(flags={"store.keep": "all"}, environ={}))
    pipeline.threads.see(source.follow([worker.pid]))
    worker.go()
    start, end = map(int, worker.line().split())
    look = source.threads()
    batch = source.drain(thorough=True)
    pipeline.take({"cycles": batch.cycles, "slices": batch.slices}, batch.thread_events)
    request = Request(b"t" * 16, b"s" * 8, bytes(8), "1", "infer", worker.pid, start, end)
    hello = Hello(worker.pid, "toy", "", {})
    messages = [Received(worker.pid, message, end) for message in (hello, request)]
    meta = Meta(resources={str(worker.pid): {"service.name": "toy"}})
    (judged,) = pipeline.judge(messages, Moment(look, meta, Cgroups().path, identities.of))
    return judged


@pytest.fixture
def identities(tmp_path: Path) -> Iterator[Identities]:
    """Of a host whose Docker and kubelet know the two containers."""
    config = tmp_path / f"var/lib/docker/containers/{WEB}/config.v2.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"ID": WEB, "Name": "/web", "Config": {"Image": "nginx:1.27", "Labels": {}}}))
    logs = tmp_path / "var/log/containers"
    logs.mkdir(parents=True)
    (logs / f"infer-0_models_server-{WORKER}.log").touch()
    opened = Identities(tmp_path, node="node-1")
    yield opened
    opened.close()


def test_a_hog_in_a_container_is_told_by_its_name_and_the_worker_by_its_pod(
    source: BpfSource, identities: Identities
) -> None:
    with (
        cpu_cgroup("tailspan-identity") as parent,
        group(parent, f"docker-{WEB}.scope") as web,
        group(parent, f"kubepods/burstable/pod{UID}/{WORKER}") as pod,
        program(SERVE, cpu=LAST_CPU) as worker,
        cpu_hog(LAST_CPU, web) as hog,
    ):
        (pod / "cgroup.procs").write_text(str(worker.pid))
        paths = [f"/{folder.relative_to(parent.parent)}" for folder in (web, pod)]
        eventually(lambda: min(len(identities.of(paths).get(path, ())) for path in paths) > 3, "files are read")
        judged = serve(source, worker, identities)
        worker.go()

    waited = next(part for part in judged.verdicts[0].ledger if part.cause is Cause.RUN_QUEUE)
    culprit = next(culprit for culprit in waited.culprits if culprit.pid == hog)
    assert described(culprit) == f"{culprit.comm} (pid {hog}, container web)"
    assert culprit.cgroup == paths[0]
    assert dict(culprit.identity) == {
        "container.id": WEB,
        "container.name": "web",
        "container.image.name": "nginx",
        "container.image.tags": "1.27",
    }
    assert judged.evidence.meta.resources == {
        str(worker.pid): {
            "service.name": "toy",
            "container.id": WORKER,
            "k8s.container.name": "server",
            "k8s.namespace.name": "models",
            "k8s.node.name": "node-1",
            "k8s.pod.name": "infer-0",
            "k8s.pod.uid": UID,
        }
    }
