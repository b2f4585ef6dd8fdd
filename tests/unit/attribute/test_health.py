"""Each part of a grade by its formula, what they come to together, and that a state does not flap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailspan import config
from tailspan.attribute import health
from tailspan.attribute.health import GPU_MEMORY, LATENCY, LOAD, Grade, Part, State, WorkerHealth, grade
from tests.gpus import TAKEN_MONO_NS, UUID, S, sample_gpu

WEIGHTS = config.Health()
GIB = float(1 << 30)


def part(name: str, value: float) -> Part:
    return Part(name, value, f"{name} is {value}")


def gpu_part(used: float | None, total: float | None = 100 * GIB, **changes: object) -> Part | None:
    known = {"memory_used": used, "memory_total": total}
    values = {name: value for name, value in known.items() if value is not None}
    return health.gpu_memory([sample_gpu(values=values, **changes)], TAKEN_MONO_NS)


@pytest.mark.parametrize(
    ("waited_s", "ran_s", "expected"),
    [(0, 0, 1.0), (0, 20, 1.0), (5, 15, 0.5), (10, 10, 0.0), (29, 1, 0.0), (2, 18, 0.8)],
)
def test_load_is_the_share_of_time_that_threads_waited_for_a_cpu(
    waited_s: int, ran_s: int, expected: float
) -> None:
    assert health.load(waited_s * S, ran_s * S, 30 * S).value == expected


def test_waits_of_a_worker_that_does_next_to_nothing_are_no_load() -> None:
    # GIVEN a worker that ran for 3 ms in 30 s, and waited as long
    found = health.load(3_000_000, 3_000_000, 30 * S)
    assert found.value > 0.99
    assert "0% of the time" in found.reason


@pytest.mark.parametrize(
    ("used_gib", "expected"), [(0, 1.0), (90, 1.0), (95, 1.0), (97, 0.6), (99, 0.2), (100, 0.0)]
)
def test_gpu_memory_is_enough_until_a_twentieth_is_left(used_gib: float, expected: float) -> None:
    found = gpu_part(used_gib * GIB)
    assert found is not None
    assert found.value == pytest.approx(expected)
    assert UUID in found.reason


def test_gpu_memory_that_nvml_does_not_say_is_absent() -> None:
    assert health.gpu_memory([], TAKEN_MONO_NS) is None
    assert gpu_part(None) is None
    assert gpu_part(99 * GIB, None) is None
    assert gpu_part(99 * GIB, 0.0) is None
    assert gpu_part(99 * GIB, taken_mono_ns=TAKEN_MONO_NS - 61 * S) is None


def test_the_fullest_gpu_counts_and_a_lost_one_is_the_worst() -> None:
    full = sample_gpu(uuid="GPU-full", values={"memory_used": 98 * GIB, "memory_total": 100 * GIB})
    lost = sample_gpu(uuid="GPU-lost", lost="GPU is lost")
    found = health.gpu_memory([sample_gpu(values={"memory_used": 0.0, "memory_total": GIB}), full], TAKEN_MONO_NS)
    assert found is not None
    assert (found.value, "GPU-full" in found.reason) == (pytest.approx(0.4), True)
    assert health.gpu_memory([full, lost], TAKEN_MONO_NS) == Part(
        GPU_MEMORY, 0.0, "GPU-lost cannot be reached: GPU is lost"
    )


@pytest.mark.parametrize(
    ("served", "slow", "expected"),
    [(1, 0, 1.0), (1, 1, 0.636), (90, 0, 1.0), (90, 5, 0.8), (90, 10, 0.6), (90, 25, 0.0), (90, 90, 0.0)],
)
def test_latency_is_the_share_of_slow_requests_and_few_requests_say_little(
    served: int, slow: int, expected: float
) -> None:
    found = health.latency(served, slow)
    assert found is not None
    assert found.value == expected
    assert found.reason == f"{slow} of {served} requests were slow for their like"


def test_no_request_says_nothing() -> None:
    assert health.latency(0, 0) is None


def test_with_an_objective_the_reason_names_it() -> None:
    found = health.latency(100, 23, slo_ms=200)
    assert found is not None
    assert found.reason == "23 of 100 requests took more than 200 ms"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({LOAD: 1.0}, 100.0),
        ({LOAD: 0.6}, 60.0),
        ({LOAD: 1.0, LATENCY: 0.6}, 70.0),
        ({LOAD: 1.0, GPU_MEMORY: 1.0, LATENCY: 0.0}, 33.3),
        ({LOAD: 0.0, GPU_MEMORY: 0.0, LATENCY: 0.0}, 0.0),
    ],
)
def test_the_score_is_halfway_between_the_mean_of_what_is_known_and_the_worst(
    values: dict[str, float], expected: float
) -> None:
    assert grade([part(*each) for each in values.items()], WEIGHTS).score == expected


def test_a_part_that_is_not_known_changes_nothing() -> None:
    known = [part(LOAD, 0.8), part(LATENCY, 0.7)]
    assert grade([known[0], None, known[1]], WEIGHTS) == grade(known, WEIGHTS)


def test_without_any_part_the_state_is_unknown() -> None:
    assert grade([None, None, None], WEIGHTS) == Grade(State.UNKNOWN, None, (), "")


def test_weights_say_how_much_a_part_counts_and_0_leaves_it_out() -> None:
    parts = [part(LOAD, 1.0), part(LATENCY, 0.0)]
    assert grade(parts, config.Health(load_weight=3.0)).score == 37.5
    # AND the part that is left out is shown all the same
    without = grade(parts, config.Health(latency_weight=0.0))
    assert (without.score, without.why, len(without.parts)) == (100.0, "", 2)
    assert grade(parts, config.Health(0.0, 0.0, 0.0)).state is State.UNKNOWN


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
)
def test_a_terrible_part_is_never_hidden_and_the_score_keeps_its_bounds(
    values: list[float], weights: list[float]
) -> None:
    parts = [part(name, value) for name, value in zip(health.PARTS, values, strict=False)]
    found = grade(parts, config.Health(*weights))
    assert found.score is not None
    assert -0.1 <= found.score <= 100 * max(values) + 0.1
    assert found.score <= 50 + 50 * min(values) + 0.1
    if min(values) < 0.4:
        assert found.state is not State.HEALTHY
    assert found.why == min(parts, key=lambda each: each.value).reason or min(values) == 1


@pytest.mark.parametrize(
    ("before", "score", "expected"),
    [
        (State.UNKNOWN, 70, State.HEALTHY),
        (State.HEALTHY, 70, State.HEALTHY),
        (State.HEALTHY, 69.9, State.WARNING),
        (State.WARNING, 74.9, State.WARNING),
        (State.WARNING, 75, State.HEALTHY),
        (State.HEALTHY, 39.9, State.CRITICAL),
        (State.WARNING, 40, State.WARNING),
        (State.CRITICAL, 44.9, State.CRITICAL),
        (State.CRITICAL, 45, State.WARNING),
        (State.CRITICAL, 74, State.WARNING),
        (State.CRITICAL, 76, State.HEALTHY),
    ],
)
def test_a_worse_state_is_left_only_with_a_margin(before: State, score: float, expected: State) -> None:
    assert health.state_of(score, WEIGHTS, before) is expected


def test_a_score_that_wavers_around_a_threshold_changes_its_state_once() -> None:
    state, states = State.HEALTHY, []
    for number in range(23):
        state = health.state_of(70 + (-1) ** number * 3, WEIGHTS, state)
        states.append(state)
    assert states == [State.HEALTHY] + [State.WARNING] * 22


def test_thresholds_at_their_ends() -> None:
    never_critical = config.Health(warning=1, critical=0)
    assert health.state_of(0, never_critical, State.CRITICAL) is State.WARNING
    strict = config.Health(warning=100, critical=100)
    assert health.state_of(99.9, strict, State.HEALTHY) is State.CRITICAL
    assert health.state_of(100, strict, State.CRITICAL) is State.HEALTHY


def worker(service: str, value: float) -> WorkerHealth:
    return WorkerHealth(service, grade([part(LOAD, value)], WEIGHTS))


def test_the_host_is_never_better_than_its_worst_worker() -> None:
    own = grade([part(LOAD, 0.9)], WEIGHTS)
    workers = [worker("web", 0.8), worker("chat", 0.3), WorkerHealth("idle", Grade())]
    assert health.worst_of(own, workers, WEIGHTS, State.HEALTHY) == Grade(
        State.CRITICAL, 30.0, own.parts, "chat: load is 0.3"
    )
    assert health.worst_of(own, [worker("web", 0.95)], WEIGHTS, State.HEALTHY) == own
    assert health.worst_of(Grade(), [WorkerHealth("idle", Grade())], WEIGHTS, State.UNKNOWN) == Grade()
    assert health.worst_of(Grade(), [worker("web", 1.0)], WEIGHTS, State.UNKNOWN) == Grade(State.HEALTHY, 100.0)
