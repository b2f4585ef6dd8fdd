"""Catalogues that are a folder: one module, one entry, with the name of its file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from tailspan.errors import UsageError


def faults_of(package: ModuleType) -> dict[str, Any]:
    """``FAULT`` of every module of the package, by name."""
    found: dict[str, Any] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        fault = importlib.import_module(f"{package.__name__}.{module}").FAULT
        if fault.name != module:
            raise UsageError(f"faults/{module}.py calls its fault {fault.name}: a fault has the name of its file")
        found[fault.name] = fault
    return found
