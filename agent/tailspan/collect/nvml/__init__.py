"""The GPUs of this host, through NVML. What is not there or does not answer is a state, not an error."""

from tailspan.collect.nvml.outbox import Taken
from tailspan.collect.nvml.sampler import GpuSampler

__all__ = ["GpuSampler", "Taken"]
