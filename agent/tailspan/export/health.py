"""The health of the workers and the host, as metrics and as JSON. What is not known is absent, never 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tailspan.attribute.health import Grade, HostHealth, State, WorkerHealth
from tailspan.export import semconv
from tailspan.export.families import Number, Snapshot, encodable
from tailspan.export.semconv import OTHER

Json = dict[str, Any]


class HealthSource:
    """As of the last :meth:`take`. Services beyond the limit of the metric share the lowest of their scores."""

    def __init__(self, overflow: Callable[[str], None]) -> None:
        self._overflow = overflow
        self._latest: tuple[Grade, list[tuple[str, Grade]]] | None = None  # of the host, and by service

    def take(self, health: HostHealth) -> None:
        limit = semconv.WORKER_HEALTH_SCORE.limit
        named = [(encodable(each.service), each.grade) for each in health.workers[:limit]]
        others = [each.grade for each in health.workers[limit:]]
        if others:
            self._overflow(semconv.WORKER_HEALTH_SCORE.name)
            named.append((OTHER, min(others, key=_by_score)))
        self._latest = health.host, named

    def collect(self) -> Iterator[Snapshot]:
        latest = self._latest  # one state of all for the whole scrape
        if latest is None:
            return
        host, named = latest
        yield _snapshot(semconv.HOST_HEALTH_SCORE, _scores([((), host)]))
        yield _snapshot(semconv.HOST_HEALTH_STATE, _states([((), host)]))
        of_services: Graded = [((service,), grade) for service, grade in named]
        yield _snapshot(semconv.WORKER_HEALTH_SCORE, _scores(of_services))
        yield _snapshot(semconv.WORKER_HEALTH_STATE, _states(of_services))
        parts = [Number((service, part.name), part.value) for service, grade in named for part in grade.parts]
        yield _snapshot(semconv.WORKER_HEALTH_PART, parts)


Graded = list[tuple[tuple[str, ...], Grade]]


def _snapshot(metric: semconv.Metric, numbers: list[Number]) -> Snapshot:
    return Snapshot(metric, [*numbers], since_start=False)


def _scores(graded: Graded) -> list[Number]:
    return [Number(labels, grade.score) for labels, grade in graded if grade.score is not None]


def _states(graded: Graded) -> list[Number]:
    return [Number((*labels, state), float(state is grade.state)) for labels, grade in graded for state in State]


def _by_score(grade: Grade) -> float:
    return float("inf") if grade.score is None else grade.score


def as_json(health: HostHealth) -> Json:
    return {
        "host": grade_as_json(health.host),
        "workers": [worker_as_json(each) for each in health.workers],
        "ungraded": health.ungraded,
    }


def worker_as_json(worker: WorkerHealth) -> Json:
    processes = [{"pid": tgid, **grade_as_json(grade)} for tgid, grade in worker.processes.items()]
    return {"service": worker.service, **grade_as_json(worker.grade), "processes": processes}


def grade_as_json(grade: Grade) -> Json:
    return {
        "state": str(grade.state),
        "score": grade.score,
        "why": grade.why,
        "parts": {part.name: {"value": part.value, "reason": part.reason} for part in grade.parts},
    }


def found(health: HostHealth, name: str) -> tuple[Grade, Json] | None:
    """The worker of that service, or the process of that pid; None where there is neither."""
    for worker in health.workers:
        if worker.service == name:
            return worker.grade, worker_as_json(worker)
    for worker in health.workers:
        for tgid, grade in worker.processes.items():
            if str(tgid) == name:
                return grade, {"service": worker.service, "pid": tgid, **grade_as_json(grade)}
    return None
