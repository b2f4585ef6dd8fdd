"""A store of known requests, and commands run in this process."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tailspan import config
from tailspan.attribute.judge import judge
from tailspan.cli import main
from tailspan.config import Config
from tailspan.export.local import SegmentWriter
from tailspan.export.segment import IndexRow
from tailspan.timeline.evidence import Evidence
from tests.builders import START_MONO_NS, WALL_NS, sample_evidence

Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def no_configuration_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "absent.toml")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: object) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def request(trace_id: str, ended_s_ago: float = 60, **row: object) -> tuple[Evidence, IndexRow]:
    """Evidence of one request that ended then; ``row``: what its index row says instead of the verdict."""
    evidence = sample_evidence()
    evidence.requests["trace_id"] = bytes.fromhex(trace_id)
    evidence.requests["span_id"] = bytes.fromhex(trace_id[:16])
    ended_unix_ns = time.time_ns() - int(ended_s_ago * 1e9)
    offset = ended_unix_ns - START_MONO_NS - WALL_NS
    evidence.meta = replace(evidence.meta, unix_offset_ns=offset)
    (verdict,) = judge(evidence)
    return evidence, replace(IndexRow.of(verdict), **row)  # type: ignore[arg-type]


def fill(directory: Path, *requests: tuple[Evidence, IndexRow]) -> None:
    writer = SegmentWriter(
        directory, host="node-1", max_segment_bytes=1 << 20, max_total_bytes=8 << 20, max_age_s=3600
    )
    for evidence, row in requests:
        assert writer.append(evidence, [row])
    writer.close()


ONE = "aaaa" + "0" * 28
TWO = "aabb" + "0" * 28
FAST = "cccc" + "0" * 28


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Oldest first: a fast request, ONE an hour ago, TWO a minute ago and the slowest by its row."""
    directory = tmp_path / "store"
    fill(
        directory,
        request(FAST, 7200, wall_ns=1_000_000),
        request(ONE, 3600, request_id="req-1"),
        request(TWO, 60, request_id="req-2", wall_ns=500_000_000),
    )
    return directory


@dataclass
class Daemon:
    """What ``tailspan.daemon.run`` was asked; it then does ``work`` and returns ``code``."""

    config: Config | None = None
    seconds: float | None = None
    code: int = 0
    work: Callable[[Config], None] = field(default=lambda config: None)

    def run(self, config: Config, seconds: float | None = None, reload: Callable[[], Config] | None = None) -> int:
        self.config, self.seconds = config, seconds
        self.work(config)
        return self.code


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = Daemon()
    module = types.ModuleType("tailspan.daemon")
    module.run = daemon.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tailspan.daemon", module)
    monkeypatch.setattr("tailspan.log.set_up", lambda: None)  # it would take pytest's handlers away
    return daemon
