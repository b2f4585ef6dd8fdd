"""GPU performance monitoring: shares of the SMs, of Hopper and later, between two samples that we take."""

from __future__ import annotations

import math
from typing import Any

from tailspan.collect.nvml.calls import NOT_SUPPORTED, Asked, NvmlError

_SUPPORT = "nvmlGpmQueryDeviceSupport"
_VERSION = 1
#: NVML_GPM_METRIC_* -> gauge; all in percent.
_METRICS = {
    2: "gpm_sm_utilization",
    3: "gpm_sm_occupancy",
    5: "gpm_tensor_utilization",
    10: "gpm_dram_utilization",
}


class Gpm:
    """Of one GPU; or of a MIG instance, which is asked through its GPU by the number of its GPU instance."""

    def __init__(self, asked: Asked, gpu: Asked, instance: int | None = None) -> None:
        self._asked, self._gpu, self._instance = asked, gpu, instance
        self._supported = False
        self._samples: list[Any] = []  # the one before, and the latest

    def support(self) -> None:
        """Whether the card can. Asked seldom."""
        said = self._gpu.ask(_SUPPORT)
        self._supported = bool(said is not None and said.isSupportedDevice)
        if said is not None and not self._supported:
            self._asked.failed(_SUPPORT, NOT_SUPPORTED, self._asked.nvml.text(NOT_SUPPORTED))

    def read(self) -> dict[str, float]:
        """Since the last call; the first has nothing to say. NVML wants 100 ms or more in between."""
        if not self._supported:
            return {}
        sample = self._sample()
        if sample is None:
            self.close()
            return {}
        self._samples.append(sample)
        return self._between(*self._samples) if len(self._samples) == 2 else {}

    def close(self) -> None:
        """Where NVML is no longer initialised, its memory went with it."""
        while self._samples:
            self._free(self._samples.pop())

    def _sample(self) -> Any:
        """Of now, in the place of the oldest."""
        nvml = self._asked.nvml
        try:
            sample = self._samples.pop(0) if len(self._samples) == 2 else nvml.call("nvmlGpmSampleAlloc")
        except NvmlError:
            return None
        try:
            if self._instance is None:
                taken = self._asked.ask("nvmlGpmSampleGet", sample)
            else:
                taken = self._gpu.ask("nvmlGpmMigSampleGet", self._instance, sample)
        except NvmlError:
            self._free(sample)
            raise
        if taken is None:
            self._free(sample)
        return taken

    def _between(self, before: Any, now: Any) -> dict[str, float]:
        nvml = self._asked.nvml
        wanted = nvml.make("c_nvmlGpmMetricsGet_t")
        wanted.version, wanted.numMetrics = _VERSION, len(_METRICS)
        wanted.sample1, wanted.sample2 = before, now
        for metric, number in zip(wanted.metrics, _METRICS, strict=False):
            metric.metricId = number
        try:
            nvml.call("nvmlGpmMetricsGet", wanted)
        except NvmlError:
            return {}
        said = list(wanted.metrics[: len(_METRICS)])
        return {
            _METRICS[metric.metricId]: metric.value / 100
            for metric in said
            if not metric.nvmlReturn and math.isfinite(metric.value) and metric.value >= 0
        }

    def _free(self, sample: Any) -> None:
        try:
            self._asked.nvml.call("nvmlGpmSampleFree", sample)
        except NvmlError:
            return
