"""The command line: parse, dispatch, print errors, pick the exit code.

0 ok · 1 found a problem, or nothing · 2 usage · 3 this machine or user cannot. Results go to stdout, messages to
stderr. A command imports what it needs when it is called: ``--help`` costs no numpy.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

from tailspan.cli.parser import build
from tailspan.errors import TailspanError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PIPE_CLOSED = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    _never_fail_to_print()
    try:
        args = build().parse_args(argv)
        code: int = args.call(args)
        sys.stdout.flush()
    except TailspanError as error:
        print("tailspan:", " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return PIPE_CLOSED
    return code


def _never_fail_to_print() -> None:
    """A terminal that has no block characters gets question marks, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_stdout() -> None:
    """The reader has gone; the interpreter's own last flush must not fail again and complain."""
    with contextlib.suppress(OSError, ValueError):  # stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
