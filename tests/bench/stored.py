"""A day of evidence on disk: how long the commands that read it take, and how much of it there is.

The store is synthetic: as many slow requests as a host of :data:`RATE` has in a day, as large and as many to a
block as those of :mod:`tests.bench.export` were (``docs/fleet/sizing.json``), in segments of the default size. The
commands are real processes, from their start to their end. *Cold*: the kernel was asked to forget the segments'
pages; the interpreter and its modules stay in the page cache.

Noise: 10 to 20 % between processes; the disk of a virtual machine may be the cache of its host.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import BinaryIO

import msgpack
import numpy as np

from tailspan.attribute.judge import judge
from tailspan.config import Config
from tailspan.errors import TailspanError
from tailspan.export import segment
from tailspan.export.local import SUFFIX
from tailspan.export.segment import BLOCK_HEADER_SIZE, IndexRow
from tailspan.timeline.cut import narrow
from tests.bench.page import number, span, table
from tests.bench.second import Shape, evidence
from tests.bench.sizing import RATES, SLOW_SHARES, size
from tests.bench.spread import Figures, spread

#: Requests/s of the host, and how many of them are slow.
RATE, SLOW_SHARE = 100, 0.01
DAY_S = 86_400
SIZING = Path(__file__).parents[2] / "docs" / "fleet" / "sizing.json"
STORE = Config().store

#: Name -> command; ``{id}``: a trace id, of anywhere in the day.
COMMANDS = {
    "explain ID": "explain {id}",
    "explain --slowest": "explain --slowest",
    "slow": "slow",
    "slow --since 1h": "slow --since 1h",
    "top": "top",
}
_TAILSPAN = Path(sys.executable).with_name("tailspan")


def run(quick: bool) -> Figures:
    return measure(requests=2_000, times=2) if quick else measure(requests=_a_day(), times=3)


def _a_day() -> int:
    return round(RATE * SLOW_SHARE * DAY_S)


def measure(requests: int, times: int, commands: Collection[str] = tuple(COMMANDS)) -> Figures:
    """``requests``: slow ones that are stored. ``times``: of each command, cold and warm."""
    of_export = json.loads(SIZING.read_text())["benches"]["export"]
    situation = max(of_export["situations"].values(), key=lambda one: float(one["stored_bytes"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = np.linspace(0, requests - 1, times).round().astype(int).tolist()
        ids, blocks = _write(folder, requests, max(1, round(situation["requests_per_turn"])), set(asked))
        bare = [_run(["--version"])[0] for _ in range(times)]
        found = {words: _command(folder, words, [ids[at] for at in asked]) for words in commands}
        held = sum(path.stat().st_size for path in _segments(folder))
        segments = len(_segments(folder))
    return {
        "requests": requests,
        "requests_per_s": RATE,
        "slow_percent": 100 * SLOW_SHARE,
        "blocks": blocks,
        "segments": segments,
        "bytes": held,
        "bytes_per_request": held / requests,
        "bytes_per_request_of_export": situation["stored_bytes"],
        "bare_s": spread(bare),
        "commands": found,
        "hourly": [
            {"requests_per_s": rate, "slow_percent": 100 * share, "bytes": rate * share * 3600 * held / requests}
            for rate in RATES
            for share in SLOW_SHARES
        ],
    }


def _command(folder: Path, words: str, ids: Sequence[str]) -> Figures:
    cold: list[float] = []
    warm: list[float] = []
    peaks: list[float] = []
    for trace_id in ids:
        command = COMMANDS[words].format(id=trace_id).split()
        command += ["--store", str(folder)]
        _forget(folder)
        for found in (cold, warm):
            took_s, peak_mib = _run(command)
            found.append(took_s)
            peaks.append(peak_mib)
    return {"cold_s": spread(cold), "warm_s": spread(warm), "peak_mib": max(peaks)}


#: Between this process and a command: what a child had resident begins with what its parent has.
_LAUNCHER = """
import json, os, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
said = process.stderr.read()
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.monotonic() - began, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status), said]))
process.returncode = 0
"""


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Wall seconds of a process, and the most that it had resident, MiB. Raises TailspanError where it fails."""
    launch = [sys.executable, "-c", _LAUNCHER, _TAILSPAN, *command]
    took_s, peak_mib, code, said = json.loads(subprocess.run(launch, check=True, capture_output=True).stdout)
    if code not in (0, 1):
        raise TailspanError(f"tailspan {' '.join(command)}: {said.strip() or code}")
    return took_s, peak_mib


def _forget(folder: Path) -> None:
    """The kernel's pages of the segments; all of them are on disk already."""
    for path in _segments(folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


# --- the store --------------------------------------------------------------------------------------------------


class _Template:
    """One block, of which others are made: their requests have ids and times of their own in the index.

    What is explained is looked up by its index, and then by what lies in the payload; so a block that is to be
    explained is encoded as a whole, and all others have the payload of the first.
    """

    def __init__(self, in_a_block: int) -> None:
        # As many turns as make a block as large as those of real slow requests.
        shape = Shape(
            handlers=8, executors=1, cpus=2, request_ns=40_000_000, turn_ns=3_000_000, slice_ns=3_000_000
        )
        self._evidence = narrow(evidence(8, shape), np.arange(in_a_block))
        rows = [IndexRow.of(verdict) for verdict in judge(self._evidence)]
        self._rows = [replace(row, threshold_ns=row.wall_ns // 2) for row in rows]  # slow, as what is stored is
        block = segment.encode_block(self._evidence, self._rows)
        header = segment.decode_block_header(block[:BLOCK_HEADER_SIZE])
        assert header is not None
        self._header = header
        self._payload = block[BLOCK_HEADER_SIZE + header.index_len :]

    def block(self, ids: Sequence[str], start_unix_ns: int, step_ns: int) -> bytes:
        rows = self._indexed(ids, start_unix_ns, step_ns)
        index = msgpack.packb([asdict(row) for row in rows])
        end_unix_ns = max(row.start_unix_ns + row.wall_ns for row in rows)
        header = replace(
            self._header,
            index_len=len(index),
            index_crc=zlib.crc32(index),
            start_unix_ns=start_unix_ns,
            end_unix_ns=end_unix_ns,
        )
        packed = segment._BLOCK.pack(segment.BLOCK_MAGIC, *astuple(header))
        return b"".join((segment._with_crc(packed), index, self._payload))

    def whole(self, ids: Sequence[str], start_unix_ns: int, step_ns: int) -> bytes:
        """One that can be explained."""
        rows, requests = self._indexed(ids, start_unix_ns, step_ns), self._evidence.requests.copy()
        for number_, row in enumerate(rows):
            requests["trace_id"][number_] = np.void(bytes.fromhex(row.trace_id))
            requests["span_id"][number_] = np.void(bytes.fromhex(row.span_id))
        offset = start_unix_ns - int(requests["start_mono_ns"].min())
        meta = replace(self._evidence.meta, unix_offset_ns=offset)
        return segment.encode_block(replace(self._evidence, requests=requests, meta=meta), rows)

    def _indexed(self, ids: Sequence[str], start_unix_ns: int, step_ns: int) -> list[IndexRow]:
        return [
            replace(row, trace_id=trace_id, span_id=trace_id[:16], start_unix_ns=start_unix_ns + number_ * step_ns)
            for number_, (row, trace_id) in enumerate(zip(self._rows, ids, strict=False))
        ]


def _write(folder: Path, requests: int, in_a_block: int, asked: set[int]) -> tuple[list[str], int]:
    """Trace ids, oldest first, and how many blocks they are in. ``asked``: those that will be explained."""
    template = _Template(in_a_block)
    step_ns = DAY_S * 1_000_000_000 // requests
    first_ns = time.time_ns() - DAY_S * 1_000_000_000
    # A made-up order: ids that begin alike are not neighbours.
    ids = [f"{(at + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}" for at in range(requests)]
    firsts = range(0, requests, in_a_block)
    with contextlib.ExitStack() as stack:
        file: BinaryIO | None = None
        for first in firsts:
            ended_ns = first_ns + first * step_ns
            encode = template.whole if asked & set(range(first, first + in_a_block)) else template.block
            block = encode(ids[first : first + in_a_block], ended_ns, step_ns)
            if file is None or file.tell() + len(block) > STORE.segment_mib << 20:
                file = stack.enter_context(open(folder / f"{ended_ns:020d}{SUFFIX}", "wb"))
                file.write(segment.encode_file_header(ended_ns, "bench"))
            file.write(block)
    os.sync()
    segments = _segments(folder)
    for path, following in itertools.pairwise(segments):  # as last written to, not a moment ago
        os.utime(path, ns=(int(following.stem),) * 2)
    return ids, len(firsts)


# --- the page ---------------------------------------------------------------------------------------------------


def render(figures: Figures) -> str:
    commands = figures["commands"]
    rows = [
        [f"`tailspan {words}`", _ms(one["warm_s"]), _ms(one["cold_s"]), number(one["peak_mib"])]
        for words, one in commands.items()
    ]
    rows.append(["`tailspan --version`: the interpreter alone", _ms(figures["bare_s"]), "", ""])
    hourly = [
        [
            f"{one['requests_per_s']:,} requests/s, {number(one['slow_percent'])} % slow",
            size(one["bytes"]),
            number((STORE.total_mib << 20) / one["bytes"]),
        ]
        for one in figures["hourly"]
    ]
    return f"""## Evidence on disk

A day of a host with {figures["requests_per_s"]} requests/s of which {number(figures["slow_percent"])} % are slow:
{figures["requests"]:,} of them in {figures["blocks"]:,} blocks and {figures["segments"]} segments,
{size(figures["bytes"])}: {number(figures["bytes_per_request"])} bytes each, as real ones were
({number(figures["bytes_per_request_of_export"])}, see *Export*). Real processes, from their start to their end.

{table(["command", "ms", "cold, ms", "peak MiB"], rows)}

{table(["slow requests of", "an hour", f"`store.total_mib` ({STORE.total_mib}) holds, h"], hourly)}

What bounds it: {_what(figures)}"""


def _what(figures: Figures) -> str:
    explain, bare = figures["commands"]["explain ID"]["warm_s"]["median"], figures["bare_s"]["median"]
    each = (explain - bare) / figures["blocks"] * 1e6
    return f"""every block of the time asked for is looked at, newest first, and its index read: {number(each)} µs
a block here. Nothing but the block that is explained is decompressed."""


def _ms(figure: Figures) -> str:
    return span({key: value if key == "n" else value * 1e3 for key, value in figure.items()})
