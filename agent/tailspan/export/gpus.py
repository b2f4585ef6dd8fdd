"""The metrics of this host's GPUs, as NVML had them last. What it does not say is an absent series, never 0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from tailspan.export import semconv
from tailspan.export.families import Number, Snapshot, encodable
from tailspan.export.semconv import OTHER, Metric
from tailspan.timeline.gpus import GpuHost, GpuProcess, GpuReading, NvmlState

Sample = tuple[Metric, tuple[str, ...], float]

#: Of a MIG instance's values its own. The others are its GPU's, where they are exposed already: a sum over devices
#: would count them twice.
_OF_INSTANCE = frozenset(
    {
        *("utilization", "memory_used", "memory_total", "memory_reserved"),
        *("gpm_sm_utilization", "gpm_sm_occupancy", "gpm_tensor_utilization", "gpm_dram_utilization"),
    }
)
#: Where one of these is unreadable, XIDs are not heard of: that there was none is not known.
_XID_FUNCTIONS = ("nvmlEventSet", "nvmlDeviceRegisterEvents")
#: Values of hw.state.
_STATES = ("ok", "degraded", "predicted_failure", "failed")


class GpuSource:
    """Nothing before the first :meth:`take`. ``admits`` says whether (hw.id, command name) gets its own series."""

    def __init__(self, admits: Callable[[tuple[str, ...]], bool]) -> None:
        self._admits = admits
        self._latest: tuple[GpuHost, int, tuple[Sample, ...]] | None = None

    def take(self, host: GpuHost, now_mono_ns: int) -> None:
        """Called by the daemon's thread. Names are admitted here, in order of appearance, and not by scrapes."""
        named = tuple(sample for gpu in host.gpus if not gpu.lost for sample in self._processes(gpu))
        self._latest = host, now_mono_ns, named

    def collect(self) -> Iterator[Snapshot]:
        snapshots: dict[str, Snapshot] = {}
        for metric, labels, value in self._samples():
            snapshot = snapshots.get(metric.name)
            if snapshot is None:
                snapshot = snapshots[metric.name] = Snapshot(metric, [], since_start=False)
            snapshot.series.append(Number(labels, value))
        yield from snapshots.values()

    def _samples(self) -> Iterator[Sample]:
        latest = self._latest  # one state of the host for the whole scrape
        if latest is None:
            return
        host, now_mono_ns, named = latest
        yield from _nvml(host)
        for gpu in host.gpus:
            yield from _gpu(gpu, host.driver, now_mono_ns)
        yield from named

    def _processes(self, gpu: GpuReading) -> Iterator[Sample]:
        by_name: dict[str, list[GpuProcess]] = defaultdict(list)
        for process in gpu.processes:
            by_name[process.comm if self._admits((gpu.uuid, process.comm)) else OTHER].append(process)
        for name, processes in by_name.items():
            labels = (gpu.uuid, encodable(name))
            yield from _sum(semconv.GPU_PROCESS_MEMORY, labels, [one.memory_bytes for one in processes])
            yield from _sum(semconv.GPU_PROCESS_UTILIZATION, labels, [one.sm for one in processes])


def _nvml(host: GpuHost) -> Iterator[Sample]:
    for state in NvmlState:
        yield semconv.NVML_STATE, (state.replace(" ", "_"),), float(state is host.state)
    yield semconv.NVML_CALLS, (), host.calls
    yield semconv.NVML_CALL_TIME, (), host.call_s
    yield semconv.NVML_ATTEMPTS, (), host.attempts
    for error, count in host.failures.items():
        yield semconv.NVML_FAILURES, (error,), count


def _gpu(gpu: GpuReading, driver: str, now_mono_ns: int) -> Iterator[Sample]:
    device = (gpu.uuid, gpu.name, gpu.parent, "gpu")
    state = _state(gpu)
    yield semconv.GPU_INFO, (gpu.uuid, gpu.name, gpu.parent, driver, str(gpu.index)), 1
    for each in _STATES:
        yield semconv.HW_STATUS, (*device, each), float(each == state)
    if gpu.taken_mono_ns:
        yield semconv.GPU_READING_AGE, (gpu.uuid,), max(now_mono_ns - gpu.taken_mono_ns, 0) / 1e9
    if not gpu.parent:
        yield from _xids(gpu, device)
    if not gpu.lost:
        yield from _values(gpu, device)


def _state(gpu: GpuReading) -> str:
    if gpu.lost:
        return "failed"
    if gpu.values.get("remapped_rows_failed"):
        return "predicted_failure"
    return "degraded" if gpu.values.get("remapped_rows_pending") else "ok"


def _xids(gpu: GpuReading, device: tuple[str, ...]) -> Iterator[Sample]:
    """Of a lost GPU too: the agent itself has counted them, and one of them often says why it is lost."""
    for number, count in gpu.xids.items():
        yield semconv.HW_ERRORS, (*device, f"xid-{number}"), count
    if not any(name.startswith(_XID_FUNCTIONS) for name in gpu.unreadable):
        yield semconv.GPU_XIDS, (gpu.uuid,), sum(gpu.xids.values())


def _values(gpu: GpuReading, device: tuple[str, ...]) -> Iterator[Sample]:
    values = {name: value for name, value in gpu.values.items() if not gpu.parent or name in _OF_INSTANCE}
    for metric, parts in semconv.GPU_VALUES.items():
        whose = device if metric.attributes[: len(device)] == semconv.DEVICE_ATTRIBUTES else device[:1]
        for name, labels in parts.items():
            if name in values:
                yield metric, (*whose, *labels), values[name]
    used, total = values.get("memory_used"), values.get("memory_total")
    if used is not None and total:
        yield semconv.HW_GPU_MEMORY_UTILIZATION, device, used / total
    if not gpu.parent:
        for reason, seconds in gpu.clock_events.items():
            yield semconv.GPU_CLOCK_EVENTS, (gpu.uuid, reason), seconds


def _sum(
    metric: Metric, labels: tuple[str, ...], parts: list[int | None] | list[float | None]
) -> Iterator[Sample]:
    """Without one of its parts a sum is not known."""
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        yield metric, labels, sum(known)
