"""``python -m tests.scorecard``: inject every fault, print how often it is named; 1 if a goal is missed."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from tailspan.errors import TailspanError
from tests.scorecard import report, run
from tests.scorecard.fault import discover


def main() -> int:
    faults = discover()
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard", description=__doc__)
    parser.add_argument("--faults", metavar="A,B", help=f"only these (default: all of {', '.join(faults)})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON too")
    parser.add_argument("--short", action="store_true", help="few faults, few requests, softer goals: for CI")
    args = parser.parse_args()
    names = args.faults.split(",") if args.faults else [f for f in faults if faults[f].short or not args.short]
    if unknown := sorted(set(names) - set(faults)):
        parser.error(f"no fault {', '.join(unknown)}: there are {', '.join(faults)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all that was made is removed
    plan, goals = (run.SHORT, report.SHORT) if args.short else (run.FULL, report.FULL)
    try:
        card = run.run([faults[name] for name in names], plan)
    except TailspanError as error:
        print(f"tests.scorecard: {error}", file=sys.stderr)
        return error.exit_code
    print(report.text(card, goals))
    if args.json:
        args.json.write_text(json.dumps(report.as_json(card, goals), indent=1) + "\n")
    return 1 if report.missed(card, goals) else 0


if __name__ == "__main__":
    sys.exit(main())
