"""Build hook: the wheel carries the compiled BPF object, so that a host needs no compiler."""

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfObjectHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        subprocess.run(["make", "-C", str(Path(self.root) / "bpf")], check=True)
        # Any Python 3, but the object is of one byte order and reads one architecture's registers.
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_')}"
