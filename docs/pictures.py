"""Writes the command line's views as pictures into docs/pictures: ``python docs/pictures.py STORE [--live]``.

STORE is what a demo recorded (``make demo`` leaves ``.demo``): the same store gives the same bytes. ``--live``
adds the views of the machine itself (root): ``check``, and ``syscalls`` of a worker that serves meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tailspan.errors import CannotError, TailspanError
from tailspan.worker.demo import first_line, running, wait_for

OUTPUT = Path(__file__).with_name("pictures")
WIDTH = 100
COMMAND_S = 60.0

#: Requests per second of the worker that ``syscalls`` looks at, and for how long it serves.
RATE, SERVING_S = 40.0, 60.0

#: No font is fetched from anywhere: each piece of text says how long it is, so that any monospaced font fits.
_SVG = """\
<svg class="tailspan-view" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: DejaVu Sans Mono, Menlo, Consolas, monospace; font-size: {char_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@dataclass(frozen=True, slots=True)
class View:
    """One picture: its file's name, and the command as a reader would type it."""

    name: str
    command: str


def stored(store: Path) -> list[View]:
    return [
        View("slow", "tailspan slow --last 15"),
        View("explain", "tailspan explain --slowest"),
        View("top", "tailspan top"),
        View("replay", f"tailspan replay {store.name} | head -6"),
    ]


CHECK = View("check", "tailspan check")
SYSCALLS = View("syscalls", "tailspan syscalls --for 5s")


def draw(view: View, environ: Mapping[str, str], folder: Path) -> None:
    """Run the command in ``folder`` and write its picture."""
    (OUTPUT / f"{view.name}.svg").write_text(picture(view, shown(view.command, environ, folder)))


def shown(command: str, environ: Mapping[str, str], folder: Path) -> str:
    """What the command prints on a terminal that is ``WIDTH`` columns wide, escape sequences and all.

    Raises CannotError where it prints nothing, or fails with more than "found a problem".
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    terminal = {"TERM": "xterm-256color", "COLUMNS": str(WIDTH), "PYTHONIOENCODING": "utf-8", "PATH": path}
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ours, theirs = os.openpty()
    pieces: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, pieces))
    try:
        reader.start()
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**inherited, **terminal, **environ},
            timeout=COMMAND_S,
        )
    finally:
        os.close(theirs)  # which ends what the reader reads
        if reader.ident is not None:
            reader.join()
        os.close(ours)
    output = b"".join(pieces).decode().replace("\r\n", "\n")
    if done.returncode not in (0, 1) or not output.strip():
        raise CannotError(f"{command}: exit code {done.returncode}: {output.strip() or 'no output'}")
    return output


def _read(terminal: int, pieces: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more
        while piece := os.read(terminal, 65536):
            pieces.append(piece)


def picture(view: View, output: str) -> str:
    """The SVG of a terminal: the prompt with the command, and below it what it printed."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="standard", force_terminal=True)
    console.print(Text(f"$ {view.command}", style="bold"))
    for line in Text.from_ansi(output.rstrip("\n")).split("\n", allow_blank=True):
        # As a terminal does it: at the column, wherever the word ends.
        for piece in line.divide(range(WIDTH, len(line), WIDTH)):
            console.print(piece, no_wrap=True, overflow="ignore", crop=False)
    svg = console.export_svg(title=view.command, code_format=_SVG, unique_id=f"tailspan-{view.name}")
    return "\n".join(filter(None, (line.strip() for line in svg.splitlines()))) + "\n"


@contextlib.contextmanager
def serving() -> Iterator[dict[str, str]]:
    """An agent beside a worker under load; gives the environment by which a command finds that agent."""
    with tempfile.TemporaryDirectory(prefix="tailspan-pictures-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        environ = {
            "TAILSPAN_AGENT_CONTROL": str(folder / "control.sock"),
            "TAILSPAN_WORKER_SOCKET": str(folder / "worker.sock"),
            "TAILSPAN_STORE_PATH": str(folder / "store"),
            "TAILSPAN_EXPORT_PROMETHEUS": "",
        }
        log = folder / "agent.log"
        agent = stack.enter_context(running("tailspan", "run", log=log, **environ))
        wait_for("ready in", log, agent)
        worker = stack.enter_context(
            running(
                *("tailspan.worker", "--port", "0"),
                log=folder / "worker.log",
                TAILSPAN_SOCKET=environ["TAILSPAN_WORKER_SOCKET"],
            )
        )
        address = first_line(worker, folder / "worker.log").removeprefix("listening on ")
        stack.enter_context(
            running(
                *("tailspan.worker.load", "--url", f"http://{address}/v1/infer"),
                *("--rate", str(RATE), "--seconds", str(SERVING_S)),
                log=folder / "load.log",
            )
        )
        wait_for("following pid", log, agent)
        yield environ


def main() -> int:
    parser = argparse.ArgumentParser(prog="python docs/pictures.py", description=__doc__)
    parser.add_argument("store", type=Path, help="a demo's store: .demo")
    parser.add_argument("--live", action="store_true", help="also what this machine says now (root)")
    args = parser.parse_args()
    store = args.store.resolve()
    OUTPUT.mkdir(exist_ok=True)
    try:
        for view in stored(store):
            draw(view, {"TAILSPAN_STORE_PATH": str(store)}, store.parent)
        if args.live:
            draw(CHECK, {}, store.parent)
            with serving() as environ:
                draw(SYSCALLS, environ, store.parent)
    except TailspanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
