"""``python -m tests.bench [NAME ...]``: run benches one after the other, print each one's section as it is done.

``--json FILE`` keeps the figures; ``--render FILE`` runs nothing and prints the page that they make, and
``--picture FILE`` beside it draws the one that the page shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tailspan.errors import TailspanError
from tests.bench import (
    attribution,
    client,
    decode,
    export,
    goals,
    growth,
    loaders,
    page,
    probes,
    rates,
    scale,
    scrape,
    startup,
    stored,
    switch,
    worker,
)
from tests.bench.spread import Figures

#: In the order of the page.
BENCHES: dict[str, ModuleType] = {
    "worker": worker,
    "client": client,
    "switch": switch,
    "probes": probes,
    "decode": decode,
    "rates": rates,
    "attribution": attribution,
    "growth": growth,
    "scale": scale,
    "export": export,
    "stored": stored,
    "scrape": scrape,
    "startup": startup,
    "loaders": loaders,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: does it work, and what order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print the page of figures written before")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="with --render: the curves of growth, as SVG")
    args = parser.parse_args(argv)
    if args.picture and not args.render:
        parser.error("--picture goes with --render")
    if unknown := sorted(set(args.names) - set(BENCHES)):
        parser.error(f"no bench {', '.join(unknown)}: there are {', '.join(BENCHES)}")
    if args.render:
        results = json.loads(args.render.read_text())
        print(page.page(results, {name: bench.render for name, bench in BENCHES.items()}, goals.render))
        if args.picture:
            _draw(results["benches"], args.picture)
        return 0
    try:
        _run(args.names or list(BENCHES), args.quick, args.json)
    except TailspanError as error:
        print(f"tests.bench: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _draw(benches: Figures, file: Path) -> None:
    if "growth" in benches:
        growth.draw(benches["growth"], file)
    else:
        print(f"tests.bench: {file} is not drawn: growth was not measured in this run", file=sys.stderr)


def _run(names: Sequence[str], quick: bool, file: Path | None) -> None:
    benches: Figures = {}
    took_s: dict[str, float] = {}
    results = {"machine": page.machine(), "quick": quick, "took_s": took_s, "benches": benches}
    for name in names:
        print(f"running {name} ...", file=sys.stderr, flush=True)
        began_s = time.monotonic()
        figures = benches[name] = BENCHES[name].run(quick)
        took_s[name] = round(time.monotonic() - began_s, 1)
        print(f"{page.wrapped(BENCHES[name].render(figures))}\n", flush=True)
        if file:  # after each: what is done is kept whatever becomes of the next
            file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
