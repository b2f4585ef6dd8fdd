"""What a fault is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tailspan.errors import UsageError
from tests.chaos.scene import Scene


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

    found: dict[str, Fault] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(faults.__path__)):
        fault: Fault = importlib.import_module(f"{faults.__name__}.{module}").FAULT
        if fault.name != module:
            raise UsageError(f"faults/{module}.py calls its fault {fault.name}: a fault has the name of its file")
        found[fault.name] = fault
    return found
