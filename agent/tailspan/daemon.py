"""The agent as a process: signals, what systemd is told, and one loop, until it is told to stop."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable

from tailspan import memory, service
from tailspan.config import Config

logger = logging.getLogger(__name__)


def run(config: Config, seconds: float | None = None, reload: Callable[[], Config] | None = None) -> int:
    """Run until SIGTERM or SIGINT, or for ``seconds``. Returns the exit code.

    ``reload`` reads the configuration again, from where ``config`` is from; None leaves SIGHUP as it is.
    """
    with contextlib.suppress(OSError, RuntimeError):  # stderr is closed, or no file
        faulthandler.enable()  # systemd's watchdog ends a hung agent with SIGABRT: where it hung is logged
    memory.return_what_is_large()
    # The threads that numpy would start when it is imported are of no use here, and would keep all privileges.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopping.append(signum))
    hangups: list[int] = []
    if reload:
        signal.signal(signal.SIGHUP, lambda signum, _: hangups.append(signum))
    started = time.monotonic()
    from tailspan.collect.bpf.programs import Programs, options

    programs = Programs(options(config))  # the kernel verifies them while the rest of the agent is imported
    from tailspan.agent import Agent

    agent = Agent(config, programs, lasting=seconds is None)
    logger.info(
        "ready in %.0f ms, workers connect to %s", (time.monotonic() - started) * 1e3, config.worker.socket
    )
    service.notify("READY=1")
    watchdog = service.Watchdog()
    try:
        while not stopping and (seconds is None or time.monotonic() - started < seconds):
            agent.tick()
            watchdog.ping()
            if reload and hangups:
                hangups.clear()  # many at once are one
                service.notify_reloading()
                agent.reload(reload)
                service.notify("READY=1")
            agent.rest()
        agent.finish()
    finally:
        service.notify("STOPPING=1")
        agent.close()
    return 0
