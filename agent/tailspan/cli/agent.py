"""The agent that runs on this host, as a command asks it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailspan import config
from tailspan.errors import CannotError


def ask(request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """What it answers. Raises :class:`CannotError` where there is no agent, or it cannot."""
    from tailspan import control

    answer = control.ask(Path(config.load().agent.control), request, timeout_s)
    if not answer.pop("ok", False):
        raise CannotError(f"the agent cannot: {answer.get('error')}")
    return answer


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Within it, an answer is read that an agent of another version may have given in its own way."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CannotError("the agent answers as another version does: restart it") from None
