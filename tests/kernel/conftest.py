"""A source and all that it has brought."""

import numpy as np
import pytest

from tailspan.collect.bpf.source import BpfSource


class Recorder:
    """Drains a source and keeps everything."""

    def __init__(self, source: BpfSource) -> None:
        self._source = source
        self._batches = [source.drain()]

    def drain(self) -> None:
        self._batches.append(self._source.drain())

    def table(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(batch, name) for batch in self._batches])

    def cycles(self, tid: int) -> np.ndarray:
        rows = self.table("cycles")
        rows = rows[rows["tid"] == tid]
        return rows[np.argsort(rows["run_mono_ns"])]

    def lost(self) -> int:
        return int(self.table("losses")["count"].sum())


@pytest.fixture
def recorder(source: BpfSource) -> Recorder:
    return Recorder(source)
