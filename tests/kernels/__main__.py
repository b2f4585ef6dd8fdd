"""``python -m tests.kernels [SERIES ...]``: boot each kernel, look with each loader, print the matrix.

``--page FILE`` writes the page; ``--json FILE`` keeps the results, beside those that it has of other kernels and
ways; ``--render FILE`` runs nothing and prints the page of what was kept. Ends with 1 where a loader could not be
had or a test failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.guest import Guest, GuestError
from tests.kernels import archive, report
from tests.kernels.archive import KERNELS, UnavailableError
from tests.kernels.inside import WAYS

RUNNING = "running"
_GUEST_S = 3600
#: It gets its own headers, which bcc compiles on where the kernel has no BTF. The others' do without.
_WITH_HEADERS = "6.1"
_HIDE_BTF = "mount -t tmpfs none /sys/kernel/btf"


def main(argv: Sequence[str] | None = None) -> int:
    everything = [*(kernel.series for kernel in KERNELS), RUNNING]
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("series", nargs="*", metavar="SERIES", help=f"of {', '.join(everything)} (default: all)")
    parser.add_argument(
        "--way", action="append", choices=WAYS, help="again for another (default: all that can be)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    parser.add_argument("--render", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.render:
        print(report.page(json.loads(args.render.read_text())), end="")
        return 0
    if unknown := sorted(set(args.series) - set(everything)):
        parser.error(f"no kernel {', '.join(unknown)}: there are {', '.join(everything)}")
    results = _look(args.series or everything, args.way or list(WAYS))
    if args.json and args.json.exists():
        results = _joined(json.loads(args.json.read_text()), results)
    print(report.table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    if args.page:
        args.page.write_text(report.page(results))
    return 1 if any(_failed(found) for kernel in results["kernels"] for found in kernel["ways"]) else 0


def _look(series: Sequence[str], ways: Sequence[str]) -> dict[str, Any]:
    began, kernels = time.monotonic(), []
    for name in series:
        possible = [way for way in ways if way in _ways(name)]
        print(f"kernel {name}: {'; '.join(possible)}", file=sys.stderr, flush=True)
        kernels.append(_running(possible) if name == RUNNING else _guest(name, possible))
    kernels.sort(key=_order)
    today = datetime.datetime.now(datetime.UTC).date()
    return {"date": today.isoformat(), "wall_s": round(time.monotonic() - began), "kernels": kernels}


def _joined(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was looked at now, and of what was looked at earlier the rest."""
    kernels = {kernel["release"]: kernel for kernel in earlier["kernels"]}
    for kernel in now["kernels"]:
        ways = {found["way"]: found for found in kernels.get(kernel["release"], {"ways": []})["ways"]}
        ways |= {found["way"]: found for found in kernel["ways"]}
        kernels[kernel["release"]] = {**kernel, "ways": [ways[way] for way in WAYS if way in ways]}
    wall_s = earlier["wall_s"] + now["wall_s"]
    return {**now, "wall_s": wall_s, "kernels": sorted(kernels.values(), key=_order)}


def _order(kernel: dict[str, Any]) -> list[int]:
    return [int(part) for part in kernel["series"].split(".")]


def _ways(series: str) -> list[str]:
    """BTF is hidden only where there are headers to do without it."""
    return [way for way in WAYS if "no BTF" not in way or series == _WITH_HEADERS]


def _running(ways: Sequence[str]) -> dict[str, Any]:
    release, found = platform.release(), []
    for way in ways:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "found.json"
            subprocess.run(
                [sys.executable, *_inside(way, file)], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr
            )
            found.append(json.loads(file.read_text()))
    series = ".".join(release.split(".")[:2])
    return {"series": series, "suite": "", "release": release, "version": "", "ways": found}


def _guest(series: str, ways: Sequence[str]) -> dict[str, Any]:
    wanted = archive.kernel(series)
    kernel = archive.unpacked(wanted)
    return {
        "series": series,
        "suite": wanted.suite,
        "release": kernel.release,
        "version": kernel.version,
        "ways": [_in_guest(series, way) for way in ways],
    }


def _in_guest(series: str, way: str) -> dict[str, Any]:
    """One boot a way: what one leaves behind is not the other's."""
    with TemporaryDirectory(prefix="tailspan-kernels-") as folder:
        file = Path(folder) / "found.json"
        script = shlex.join([sys.executable, *_inside(way, file)])
        if "no BTF" in way:
            script = f"{_HIDE_BTF} && {script}"
        guest = Guest(series, with_headers=series == _WITH_HEADERS and way != "core")
        output = guest.run(script, Path(folder), _GUEST_S).output
        print(output, file=sys.stderr)
        if not file.exists():
            raise GuestError(f"kernel {series} with {way}: nothing was found out:\n{output[-2000:]}")
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def _inside(way: str, file: Path) -> list[str]:
    return ["-m", "tests.kernels.inside", way, str(file)]


def _failed(found: dict[str, Any]) -> bool:
    return bool(found["error"] or found["tests"]["failed"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (GuestError, UnavailableError) as error:
        sys.exit(f"tests.kernels: {error}")
