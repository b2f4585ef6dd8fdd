"""Where a culprit runs, in words: of its pod, container or unit; from stored evidence as from live."""

from __future__ import annotations

import numpy as np
import pytest

from tailspan.attribute.causes import Cause
from tailspan.attribute.culprits import cgroups_of_processes, place
from tailspan.attribute.judge import judge
from tailspan.attribute.verdict import CulpritKind
from tailspan.export import payload
from tailspan.timeline.evidence import Evidence
from tests.builders import table
from tests.timelines import Timeline

PATH = "/system.slice/hog"
POD = {"k8s.pod.name": "etl-7", "k8s.namespace.name": "batch", "k8s.pod.uid": "4cad64d0"}

PLACES = {
    "pod batch/etl-7": POD | {"container.id": "3f4e5d6c7b8a9f", "k8s.container.name": "stress"},
    "pod etl-7": {"k8s.pod.name": "etl-7"},
    "pod of uid 4cad64d0": {"k8s.pod.uid": "4cad64d0", "k8s.node.name": "node-1"},
    "container web": {"container.name": "web", "container.id": "3f4e5d6c7b8a9f"},
    "container 3f4e5d6c7b8a": {"container.id": "3f4e5d6c7b8a9f", "k8s.pod.uid": "4cad64d0"},
    "unit cron.service": {"tailspan.systemd.unit": "cron.service"},
    "": {"k8s.node.name": "node-1"},
}


def behind_a_hog(identity: dict[str, str] | None) -> Evidence:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.waits(1, 10, 90, cpu=1)
    timeline.slice(1, 10, 90, 9001, "stress-ng", cgroup_id=7)
    timeline.meta.cgroups = {"7": PATH}
    timeline.meta.identities = {PATH: identity} if identity else {}
    return timeline.evidence()


@pytest.mark.parametrize("words", PLACES)
def test_a_sentence_says_where_who_had_the_cpu_runs(words: str) -> None:
    assert place(PLACES[words]) == words

    (verdict,) = judge(behind_a_hog(PLACES[words]))

    assert f"was ready to run while stress-ng (pid 9001, {words or PATH}) ran there" in verdict.sentence
    assert verdict.culprit is not None
    assert verdict.culprit.label == "stress-ng[9001]"
    assert verdict.culprit.cgroup == PATH
    assert dict(verdict.culprit.identity) == PLACES[words]


def test_a_cgroup_that_is_nobodys_is_told_by_its_path() -> None:
    (verdict,) = judge(behind_a_hog(None))
    assert f"while stress-ng (pid 9001, {PATH}) ran there" in verdict.sentence


def test_stored_evidence_gives_the_same_words() -> None:
    live = behind_a_hog(POD)
    stored = payload.decode(b"".join(payload.encode(live)))
    assert judge(stored) == judge(live)
    assert "pod batch/etl-7" in judge(stored)[0].sentence


def test_a_waker_of_another_process_that_is_followed_is_placed_too() -> None:
    timeline = Timeline()
    timeline.request(0, 100, tid=1)
    timeline.blocks(1, 10, 90, 90, waker=77, waker_tgid=700)
    timeline.meta.cgroups = {"7": PATH}
    timeline.meta.identities = {PATH: POD}
    evidence = timeline.evidence()
    look = table("open_threads", rows=3, tid=[701, 700, 8], tgid=[700, 700, 8], cgroup_id=[6, 7, 5])
    evidence.open_threads = np.concatenate((evidence.open_threads, look))

    (verdict,) = judge(evidence)

    assert verdict.cause is Cause.FUTEX
    assert verdict.culprit is not None
    assert (verdict.culprit.kind, verdict.culprit.pid, verdict.culprit.cgroup) == (CulpritKind.WAKER, 700, PATH)
    assert "waited for t77 (pid 700, pod batch/etl-7)" in verdict.sentence


def test_a_process_is_where_its_main_thread_is() -> None:
    look = table("open_threads", rows=4, tid=[9, 10, 12, 11], tgid=[9, 9, 11, 11], cgroup_id=[1, 2, 3, 4])
    assert cgroups_of_processes(look) == {9: 1, 11: 4}
    assert cgroups_of_processes(look[1:3]) == {9: 2, 11: 3}
    assert cgroups_of_processes(look[:0]) == {}
