"""What the executor does for one batch: its work on the GPU by the driver, if any, then the model."""

from __future__ import annotations

import contextlib

from tailspan.client.ort import Profile, Profiler
from tailspan.worker.batching import Facts
from tailspan.worker.cuda import CudaError, Device
from tailspan.worker.model import Floats, Model


class Runner:
    """``run`` and ``about`` are for a batcher. With a ``device`` a batch launches ``launches`` kernels there."""

    def __init__(
        self,
        model: Model,
        profiler: Profiler[Model],
        device: Device | None = None,
        *,
        launches: int = 0,
        allocate_bytes: int = 0,
    ) -> None:
        """``allocate_bytes``: of the GPU's memory, allocated and freed for every batch."""
        self._profiler = profiler
        self._device = device
        self._launches = launches
        self._allocate_bytes = allocate_bytes
        self._uuid = model.device or (device.uuid if device else "")
        self._provider = model.provider
        self._profile: Profile | None = None

    def run(self, batch: Floats) -> Floats:
        self._profile = None
        if self._device is not None:
            self._use(self._device, batch.nbytes)
        output, self._profile = self._profiler.run(lambda model: model.run(batch), len(batch))
        return output

    def about(self) -> Facts:
        """Of the run before, on the same thread."""
        return Facts(self._uuid, self._provider, self._profile)

    def _use(self, device: Device, nbytes: int) -> None:
        address = device.allocate(self._allocate_bytes) if self._allocate_bytes else 0
        try:
            device.run(self._launches, nbytes)
        except CudaError:
            with contextlib.suppress(CudaError):  # of a device that is lost: the first error says why
                self._free(device, address)
            raise
        self._free(device, address)

    def _free(self, device: Device, address: int) -> None:
        if address:
            device.free(address)
