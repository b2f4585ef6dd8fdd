"""A source and all that it has brought."""

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tailspan.collect.bpf.programs import Options
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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loaders: also with the programs that bcc compiles on this host")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "open_source" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("both_loaders")
        metafunc.parametrize("loader", ["core", "bcc"] if both else ["core"])


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where bcc's loader keeps what it has compiled: once a session for each set of knobs."""
    with pytest.MonkeyPatch.context() as patch:
        # A guest compiles for minutes: it says where that is kept.
        if not os.environ.get("CACHE_DIRECTORY"):
            patch.setenv("CACHE_DIRECTORY", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture
def open_source(loader: str, compiled_programs: None) -> Iterator[Callable[..., BpfSource]]:
    """As everywhere, by the loader that the test is run with."""
    opened: list[BpfSource] = []

    def open_with(**options: object) -> BpfSource:
        opened.append(BpfSource(Options(**{"loader": loader} | options)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_with
    for source in opened:
        source.close()


@pytest.fixture
def recorder(source: BpfSource) -> Recorder:
    return Recorder(source)
