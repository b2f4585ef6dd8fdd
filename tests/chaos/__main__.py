"""``python -m tests.chaos``: fault after fault on an agent beside a busy worker; 1 if one of them did harm."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from tailspan.errors import TailspanError
from tests.chaos import report, soak
from tests.chaos.fault import discover


def main() -> int:
    faults = discover()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", metavar="A,B", help=f"only these (default: all of {', '.join(faults)})")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S", help="of the soak (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the faults (default 1)")
    parser.add_argument("--short", action="store_true", help="each fault once, for a moment: for CI")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON too")
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="run nothing, print the page of what was written"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="SVG", help="with --render: where to write the page's picture"
    )
    args = parser.parse_args()
    if args.render:
        found = json.loads(args.render.read_text())
        print(report.page(found), end="")
        if args.picture:
            args.picture.write_text(report.picture(found))
        return 0
    names = args.faults.split(",") if args.faults else list(faults)
    if unknown := sorted(set(names) - set(faults)):
        parser.error(f"no fault {', '.join(unknown)}: there are {', '.join(faults)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all that was made is removed
    try:
        found = soak.run([faults[name] for name in names], args.seconds, args.seed, args.short, args.json)
    except TailspanError as error:
        print(f"tests.chaos: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(report.text(found))
    return 1 if report.wrong(found) else 0


if __name__ == "__main__":
    sys.exit(main())
