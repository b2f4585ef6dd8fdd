"""The GPUs of this host, through NVML. For now only which there are; absent is a state with a reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpus:
    names: tuple[str, ...]  #: ``NVIDIA H200 (GPU-<uuid>)``, by NVML's index
    why_none: str  #: what NVML said where there is none to read; "" when it works


def gpus() -> Gpus:
    """Ask the driver once. Never raises for want of a driver, a device or a permission."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus((), str(error))
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return Gpus(tuple(f"{pynvml.nvmlDeviceGetName(h)} ({pynvml.nvmlDeviceGetUUID(h)})" for h in handles), "")
    except pynvml.NVMLError as error:
        return Gpus((), str(error))
    finally:
        pynvml.nvmlShutdown()
