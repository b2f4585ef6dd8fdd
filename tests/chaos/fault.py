"""What a fault is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.chaos.scene import Scene
from tests.discovery import faults_of


@dataclass(frozen=True)
class Fault:
    """``inject``: makes the fault on a scene, as long as its context is open."""

    name: str
    what: str  #: one line
    inject: Callable[[Scene], AbstractContextManager[None]]
    lethal: bool = False  #: the agent ends of it, or may
    seconds: float = 8.0  #: for how long it is held
    short_s: float = 0.7  #: the same, in the short form
    witness: str = (
        ""  #: how a series of the agent's begins that moves by it, where what it did is not counted here
    )
    settle_s: float = 3.0  #: until the agent may be asked whether it is well again


def discover() -> dict[str, Fault]:
    """Every fault of the folder, by name."""
    from tests.chaos import faults

    return faults_of(faults)
