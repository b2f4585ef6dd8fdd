"""What do the GPUs do?"""

from __future__ import annotations

from dashboards.panels import Look, Panel, View, highest, latest, quantile, rate, series
from tailspan.export import semconv
from tailspan.export.semconv import Metric

#: Kernels, and not the encoding and decoding of video.
_GENERAL = 'hw_gpu_task="general"'
_VIDEO = 'hw_gpu_task!="general"'
_SM = 'domain="sm"'
_NOT_OK = 'hw_state!="ok"'
#: Reasons that are no idleness, nor clocks that an administrator has set.
_CAPPED = 'reason!="low_utilization"'


def _by_gpu(metric: Metric, where: str = "") -> dict[str, str]:
    return {"{{hw_id}}": latest(metric, "hw_id", where)}


def _of_limit(value: Metric, limit: Metric, where: str = "") -> dict[str, str]:
    return {"{{hw_id}}": f"{latest(value, 'hw_id', where)} / {latest(limit, 'hw_id', where)}"}


def _per_minute(metric: Metric, by: str) -> str:
    return f"60 * {rate(metric, by)}"


VIEW = View(
    name="gpu",
    title="what do the GPUs do?",
    about="The GPUs of each host: what they do, what holds them down, what breaks, and who uses them.",
    rows={
        "At a glance": (
            Panel(
                "How many GPUs are there?",
                "GPUs and MIG instances that NVML speaks of",
                semconv.GPU_INFO,
                "short",
                {"GPUs": latest(semconv.GPU_INFO)},
                Look.STAT,
            ),
            Panel(
                "How many are not well?",
                "GPUs that are lost, or whose memory fails",
                semconv.HW_STATUS,
                "short",
                {"not ok": latest(semconv.HW_STATUS, where=_NOT_OK)},
                Look.STAT,
            ),
            Panel(
                "How busy is the busiest?",
                "Share of time in which any kernel ran on it",
                semconv.HW_GPU_UTILIZATION,
                "percentunit",
                {"busiest": highest(semconv.HW_GPU_UTILIZATION, where=_GENERAL)},
                Look.STAT,
            ),
            Panel(
                "How full is the fullest?",
                "Memory used, of all there is",
                semconv.HW_GPU_MEMORY_UTILIZATION,
                "percentunit",
                {"fullest": highest(semconv.HW_GPU_MEMORY_UTILIZATION)},
                Look.STAT,
            ),
            Panel(
                "How much is any GPU held down?",
                "Share of time in which clocks were held down for one reason, of the GPU where it is the most; "
                "idleness not included",
                semconv.GPU_CLOCK_EVENTS,
                "percentunit",
                {"held down": f"max (rate({series(semconv.GPU_CLOCK_EVENTS, _CAPPED)}[$__rate_interval]))"},
                Look.STAT,
            ),
            Panel(
                "How many errors does the driver report?",
                "XIDs of any number, a minute",
                semconv.GPU_XIDS,
                "cpm",
                {"XIDs": _per_minute(semconv.GPU_XIDS, "")},
                Look.STAT,
            ),
        ),
        "How busy are they?": (
            Panel(
                "How busy is each GPU?",
                "Share of time in which any kernel ran, however small a part of the GPU it filled",
                semconv.HW_GPU_UTILIZATION,
                "percentunit",
                _by_gpu(semconv.HW_GPU_UTILIZATION, _GENERAL),
            ),
            Panel(
                "How much of each GPU do kernels fill?",
                "Share of time in which SMs had work, averaged over the SMs; only where the GPU has GPM",
                semconv.GPU_SM_UTILIZATION,
                "percentunit",
                _by_gpu(semconv.GPU_SM_UTILIZATION),
            ),
            Panel(
                "How full are the SMs?",
                "Warps on the SMs, of the most that they hold; only where the GPU has GPM",
                semconv.GPU_SM_OCCUPANCY,
                "percentunit",
                _by_gpu(semconv.GPU_SM_OCCUPANCY),
            ),
            Panel(
                "Do tensor cores have work?",
                "Share of time in which they had; only where the GPU has GPM",
                semconv.GPU_TENSOR_UTILIZATION,
                "percentunit",
                _by_gpu(semconv.GPU_TENSOR_UTILIZATION),
            ),
            Panel(
                "How busy is its memory?",
                "Share of time in which it was read or written; and, where the GPU has GPM, bandwidth used of "
                "what there is",
                semconv.GPU_MEMORY_BUSY,
                "percentunit",
                {
                    "{{hw_id}} time": latest(semconv.GPU_MEMORY_BUSY, "hw_id"),
                    "{{hw_id}} bandwidth": latest(semconv.GPU_DRAM_UTILIZATION, "hw_id"),
                },
            ),
            Panel(
                "Is video encoded or decoded?",
                "Share of time in which the GPU did",
                semconv.HW_GPU_UTILIZATION,
                "percentunit",
                {"{{hw_id}} {{hw_gpu_task}}": latest(semconv.HW_GPU_UTILIZATION, "hw_id, hw_gpu_task", _VIDEO)},
            ),
        ),
        "Who uses them?": (
            Panel(
                "Whose kernels run on each GPU?",
                "Share of time in which a kernel of processes of that command name ran; it may add up to more "
                "than 100 %",
                semconv.GPU_PROCESS_UTILIZATION,
                "percentunit",
                {"{{hw_id}} {{process}}": latest(semconv.GPU_PROCESS_UTILIZATION, "hw_id, process")},
            ),
            Panel(
                "Who holds the memory of each GPU?",
                "Memory of processes of that command name",
                semconv.GPU_PROCESS_MEMORY,
                "bytes",
                {"{{hw_id}} {{process}}": latest(semconv.GPU_PROCESS_MEMORY, "hw_id, process")},
                Look.STACK,
            ),
            Panel(
                "How full is its memory?",
                "Memory used, of all there is; runtimes often take most of it at start and keep it",
                semconv.HW_GPU_MEMORY_UTILIZATION,
                "percentunit",
                _by_gpu(semconv.HW_GPU_MEMORY_UTILIZATION),
            ),
            Panel(
                "How many bytes of it are used?",
                "Used, reserved by driver and firmware, and all there is",
                semconv.HW_GPU_MEMORY_USAGE,
                "bytes",
                {
                    "{{hw_id}} used": latest(semconv.HW_GPU_MEMORY_USAGE, "hw_id"),
                    "{{hw_id}} reserved": latest(semconv.GPU_MEMORY_RESERVED, "hw_id"),
                    "{{hw_id}} all": latest(semconv.HW_GPU_MEMORY_LIMIT, "hw_id"),
                },
            ),
            Panel(
                "How often is CUDA called?",
                "Calls of followed processes a second, by kind; launches are counted and not timed",
                semconv.GPU_CALLS,
                "cps",
                {"{{kind}}": rate(semconv.GPU_CALLS, "kind")},
            ),
            Panel(
                "What do threads wait for in CUDA?",
                "Followed threads that are inside such a call, on average; a sync waits for the GPU to be done",
                semconv.GPU_CALL_DURATION,
                "short",
                {"{{kind}}": rate(semconv.GPU_CALL_DURATION, "kind", part="_sum")},
                Look.STACK,
            ),
            Panel(
                "How long does a CUDA call take?",
                "95th percentile, by kind",
                semconv.GPU_CALL_DURATION,
                "s",
                {"{{kind}}": quantile(0.95, semconv.GPU_CALL_DURATION, "kind")},
            ),
        ),
        "What holds them down?": (
            Panel(
                "How near to their limit are the SM clocks?",
                "SM clock, of the highest that it can go; a GPU lowers it while it is idle too",
                semconv.GPU_CLOCK,
                "percentunit",
                _of_limit(semconv.GPU_CLOCK, semconv.GPU_CLOCK_LIMIT, _SM),
            ),
            Panel(
                "What holds the clocks down?",
                "Share of time in which clocks were held down, by NVIDIA's reason, averaged over GPUs; reasons "
                "overlap, and low_utilization is idleness",
                semconv.GPU_CLOCK_EVENTS,
                "percentunit",
                {
                    "{{reason}}": f"avg by (reason) (rate({series(semconv.GPU_CLOCK_EVENTS)}[$__rate_interval]))",
                },
            ),
            Panel(
                "In which performance state are they?",
                "0 is the fastest, 15 the slowest",
                semconv.GPU_PERFORMANCE_STATE,
                "none",
                _by_gpu(semconv.GPU_PERFORMANCE_STATE),
            ),
            Panel(
                "How near to its limit is the power?",
                "Power taken, of that at which the driver lowers the clocks",
                semconv.HW_POWER,
                "percentunit",
                _of_limit(semconv.HW_POWER, semconv.GPU_POWER_LIMIT),
            ),
            Panel(
                "How much energy do they take?",
                "Mean power, from the counter of energy: it misses nothing between two scrapes",
                semconv.HW_ENERGY,
                "watt",
                {"{{hw_id}}": rate(semconv.HW_ENERGY, "hw_id")},
            ),
            Panel(
                "How hot is it?",
                "Temperature of the die and, where the GPU says it, of its memory",
                semconv.HW_TEMPERATURE,
                "celsius",
                {"{{hw_id}} {{hw_sensor_location}}": latest(semconv.HW_TEMPERATURE, "hw_id, hw_sensor_location")},
            ),
        ),
        "How good are their links?": (
            Panel(
                "How much goes over PCIe?",
                "Bytes a second that the GPU receives and transmits",
                semconv.HW_GPU_IO,
                "Bps",
                {"{{hw_id}} {{network_io_direction}}": rate(semconv.HW_GPU_IO, "hw_id, network_io_direction")},
            ),
            Panel(
                "How much goes over NVLink?",
                "Bytes a second over all NVLinks of the GPU",
                semconv.GPU_NVLINK_IO,
                "Bps",
                {"{{hw_id}} {{network_io_direction}}": rate(semconv.GPU_NVLINK_IO, "hw_id, network_io_direction")},
            ),
            Panel(
                "Has its PCIe link lost lanes?",
                "Lanes, of the most that GPU and host both can; less is a card that has trained down",
                semconv.GPU_PCIE_WIDTH,
                "percentunit",
                _of_limit(semconv.GPU_PCIE_WIDTH, semconv.GPU_PCIE_WIDTH_LIMIT),
            ),
            Panel(
                "Is its PCIe link as fast as it can be?",
                "PCIe generation, of the highest that both can; an idle GPU may lower it",
                semconv.GPU_PCIE_GENERATION,
                "percentunit",
                _of_limit(semconv.GPU_PCIE_GENERATION, semconv.GPU_PCIE_GENERATION_LIMIT),
            ),
        ),
        "What breaks?": (
            Panel(
                "Which errors are there?",
                "Errors a minute by type, and XIDs of any number; by number (xid-79) only from the second of it "
                "on, since its counter begins with the first",
                semconv.HW_ERRORS,
                "cpm",
                {
                    "{{hw_id}} {{error_type}}": _per_minute(semconv.HW_ERRORS, "hw_id, error_type"),
                    "{{hw_id}} any xid": _per_minute(semconv.GPU_XIDS, "hw_id"),
                },
            ),
            Panel(
                "In which state is each GPU?",
                "failed: it cannot be reached; predicted_failure: a row of its memory could not be remapped; "
                "degraded: rows are remapped at the next reset",
                semconv.HW_STATUS,
                "short",
                {"{{hw_id}} {{hw_state}}": f"{latest(semconv.HW_STATUS, 'hw_id, hw_state')} > 0"},
                Look.TABLE,
            ),
            Panel(
                "Are rows of its memory replaced?",
                "Rows remapped a minute, by the errors that led to it",
                semconv.GPU_REMAPPED_ROWS,
                "cpm",
                {"{{hw_id}} {{error_type}}": _per_minute(semconv.GPU_REMAPPED_ROWS, "hw_id, error_type")},
            ),
            Panel(
                "Does its memory need a reset, or to be replaced?",
                "1: rows wait for the next reset; 1: a row could not be remapped",
                semconv.GPU_ROW_REMAP_FAILED,
                "none",
                {
                    "{{hw_id}} waits": latest(semconv.GPU_ROW_REMAP_PENDING, "hw_id"),
                    "{{hw_id}} failed": latest(semconv.GPU_ROW_REMAP_FAILED, "hw_id"),
                },
            ),
        ),
    },
)
