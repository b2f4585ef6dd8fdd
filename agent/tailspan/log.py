"""Logging to stderr: with journald's priorities where it listens, plain otherwise; and a brake for repetition."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import OrderedDict

#: Keys that :func:`once_per` remembers; beyond it the one unused longest is forgotten, with its count.
MAX_KEYS = 256

_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class JournalFormatter(logging.Formatter):
    """``<6>message``. The journal splits a traceback at its line ends, so that every line needs the prefix."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up(level: int = logging.INFO) -> None:
    """Log to stderr from now on; called again, it replaces what it had set up."""
    handler = logging.StreamHandler(sys.stderr)
    if _is_journal():
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _is_journal() -> bool:
    """JOURNAL_STREAM names the stream, since a child that inherits the variable may have another stderr."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Brake:
    def __init__(self) -> None:
        self.last_mono_s = -float("inf")
        self.suppressed = 0


_lock = threading.Lock()
_brakes: OrderedDict[str, _Brake] = OrderedDict()
_suppressed_total = 0


def once_per(seconds: float, key: str, logger: logging.Logger, message: str, *args: object) -> None:
    """Warn at most once per ``seconds`` and ``key``; the next warning says how many were suppressed before it."""
    global _suppressed_total
    now = time.monotonic()
    with _lock:
        brake = _brakes.setdefault(key, _Brake())
        _brakes.move_to_end(key)
        if len(_brakes) > MAX_KEYS:
            _brakes.popitem(last=False)
        if now - brake.last_mono_s < seconds:
            brake.suppressed += 1
            _suppressed_total += 1
            return
        suppressed, brake.suppressed, brake.last_mono_s = brake.suppressed, 0, now
    more = f" ({suppressed} more like it suppressed)" if suppressed else ""
    logger.warning(message + more, *args)


def suppressed_total() -> int:
    """Warnings that :func:`once_per` has not shown since the process started."""
    return _suppressed_total
