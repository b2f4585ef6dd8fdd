"""``tailspan record``: an agent in the foreground that keeps every request for a while, and exports nothing."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tailspan import log
from tailspan.cli import arguments, output
from tailspan.cli.parser import Commands, Parser
from tailspan.config import Config
from tailspan.errors import CannotError, UsageError

if TYPE_CHECKING:
    from tailspan.export.local import Block, SegmentReader

EXAMPLES = """
  tailspan record --for 30s -o incident.tspan --pid 8100
  tailspan replay incident.tspan     anywhere, by anybody
"""


def add(commands: Commands[Parser]) -> None:
    parser = commands.add_parser("record", help="keep every request for a while", examples=EXAMPLES)
    parser.add_argument(
        "--for", dest="seconds", type=arguments.seconds, required=True, metavar="TIME", help="how long, e.g. 30s"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="a new file if it ends in .tspan, or a store",
    )
    arguments.add_agent(parser)
    parser.set_defaults(call=call)


def call(args: argparse.Namespace) -> int:
    from tailspan.export.local import SUFFIX

    if args.output.suffix != SUFFIX or args.output.is_dir():
        return _run(args, args.output.absolute())
    if args.output.exists():
        raise UsageError(f"{args.output} exists: record never overwrites")
    # Beside the result, so that it is the same disk that must have room for both.
    beside = args.output.absolute().parent
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".tailspan-", dir=beside))
    except OSError as error:
        raise CannotError(f"cannot write to {beside}: {error.strerror}") from None
    try:
        code = _run(args, scratch)
        if code == 0:
            _join(scratch, args.output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return code


def _run(args: argparse.Namespace, store: Path) -> int:
    from tailspan.daemon import run

    for name in [name for name in os.environ if name.startswith("OTEL_EXPORTER_OTLP_")]:
        del os.environ[name]  # the agent's own way to be told not to export
    with tempfile.TemporaryDirectory(prefix="tailspan-") as runtime:
        log.set_up()
        return run(_config(args, store, Path(runtime)), seconds=args.seconds)


def _config(args: argparse.Namespace, store: Path, runtime: Path) -> Config:
    """``runtime`` holds the control socket: the host's own agent keeps the usual one."""
    return arguments.agent_config(
        args,
        {
            "store.path": str(store),
            "store.keep": "all",
            "export.prometheus": "",
            "agent.control": str(runtime / "control.sock"),
        },
    )


def _join(store: Path, file: Path) -> None:
    from tailspan.cli.store import warn_of_damage
    from tailspan.export.local import SegmentReader, write_evidence_file

    reader = SegmentReader(store)
    write_evidence_file(file, _blocks(reader), host=os.uname().nodename)
    warn_of_damage(reader)
    output.say(f"{sum(1 for _ in SegmentReader(file).rows())} requests in {file}")


def _blocks(reader: SegmentReader) -> Iterator[Block]:
    """Oldest first. A block's rows come newest first, one after the other."""
    from itertools import groupby

    groups = [list(rows) for _, rows in groupby(reader.rows(), key=lambda entry: (entry.path, entry.offset))]
    for rows in reversed(groups):
        yield reader.load(rows[0]), [entry.row for entry in reversed(rows)]
