"""``python -m tests.fuzz [TARGET ...]``: fuzz targets one after the other, and print a table of what came of it.

``--seconds`` or ``--runs`` say how long each; ``--json FILE`` keeps the figures, ``--render FILE`` prints the page
that they make. Inputs that reach more go to the corpus with ``--keep``; what fails is written to ``--findings``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz import engine, report
from tests.fuzz.corpus import CORPUS, folder, keep, name_of, write_seeds
from tests.fuzz.target import Target
from tests.fuzz.targets import NAMES, load

SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=0, help=f"for each target (default: {SECONDS:.0f})")
    parser.add_argument("--runs", type=int, default=0, help="executions of each target, instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print the page of figures written before")
    parser.add_argument("--keep", action="store_true", help=f"keep what reaches more in {CORPUS.name}/")
    parser.add_argument("--seeds", action="store_true", help="write the seeds anew, and do nothing else")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER")
    args = parser.parse_args(argv)
    names = args.names or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no target {', '.join(unknown)}: there are {', '.join(NAMES)}")
    if args.render:
        print(report.page(json.loads(args.render.read_text())), end="")
        return 0
    if args.seeds:
        for name in names:
            write_seeds(load(name))
        return 0
    if why := engine.why_absent():
        print(f"tests.fuzz: {why}", file=sys.stderr)
        return 3
    seconds = args.seconds or (0 if args.runs else SECONDS)
    return _fuzz(engine.prepare(names), args.runs, seconds, args)


def _fuzz(targets: list[Target], runs: int, seconds: float, args: argparse.Namespace) -> int:
    results: dict[str, Any] = {"machine": report.machine(), "targets": {}}
    print(report.HEAD, flush=True)
    for target in targets:
        with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as found:
            outcome = engine.run(target, folder(target), Path(found), runs, seconds)
            if args.keep:
                _in_a_fork(target, [path.read_bytes() for path in sorted(Path(found).iterdir())])
        if outcome.finding:
            args.findings.mkdir(exist_ok=True)
            at = args.findings / f"{target.name}-{name_of(outcome.input)}"
            at.write_bytes(outcome.input)
            print(f"{target.name}: {at}\n{outcome.finding}\n", file=sys.stderr)
        figures = asdict(outcome) | {"input": outcome.input.hex()}
        results["targets"][target.name] = figures
        print(report.row(target.name, figures), flush=True)
        if args.json:  # after each: what is done is kept whatever becomes of the next
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(one["finding"] for one in results["targets"].values()))


def _in_a_fork(target: Target, found: list[bytes]) -> None:
    """What an input leaves behind, threads among it, is not for the next target."""
    child = os.fork()
    if not child:
        try:
            keep(target, found)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    sys.exit(main())
